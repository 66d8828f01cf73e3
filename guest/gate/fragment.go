package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/cloister/cloister/wire/didx509"
	"github.com/cloister/cloister/wire/fragment"
)

// Signed fragments. A policy may declare who else can say which containers are right: an issuer, a feed and the lowest version. The host
// delivers what such an issuer has signed. A fragment is data, not rules: its module is read for constants and nothing of it is
// evaluated. What was loaded stands in the policy as the constant fragments_loaded, in the order of arrival, and stays for the policy's
// life, so that a container keeps its place in the list of all containers.

const (
	fragmentRule      = "LoadPolicyFragmentRequest"
	fragmentsConstant = "fragments_loaded"

	maxFragments          = 64 // of one policy
	maxFragmentContainers = 256
)

// loadedFragment is an element of fragments_loaded.
type loadedFragment struct {
	Issuer     string `json:"issuer"`
	Feed       string `json:"feed"`
	SVN        uint64 `json:"svn"`
	Containers []any  `json:"containers"`

	payload string
}

// FragmentError is a fragment that cannot be used (ttrpc INVALID_ARGUMENT).
type FragmentError struct{ Err error }

func (e *FragmentError) Error() string {
	return shorten(fmt.Sprintf("loading a policy fragment: %v", e.Err), maxMessage)
}

func (e *FragmentError) Unwrap() error { return e.Err }

// LoadFragment adds a signed fragment to the policy. The signature is checked at the given time, then the policy is asked by the rule
// LoadPolicyFragmentRequest with the input {issuer, feed, svn, expired}, and only then the content is read. The state stays. A fragment
// that is loaded already is no error. Faults of the fragment are *FragmentError.
func (e *Engine) LoadFragment(ctx context.Context, raw []byte, at time.Time) error {
	m, err := fragment.Parse(raw)
	if err != nil {
		return &FragmentError{Err: err}
	}
	if !m.HasSVN {
		return &FragmentError{Err: errors.New("its protected header has no version (svn)")}
	}
	err = m.Verify(at)
	expired := errors.Is(err, didx509.ErrExpired)
	if err != nil && !expired {
		return &FragmentError{Err: err}
	}
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: fragmentRule, Err: err}
	}
	defer func() { <-e.lock }()
	if e.open {
		return nil // everything is allowed already
	}
	if e.policy.hasFragment(m) {
		return nil
	}
	if _, err := e.decideLocked(ctx, fragmentRule, fragmentInput(m, expired)); err != nil {
		return err
	}
	f, err := readFragment(m)
	if err != nil {
		return &FragmentError{Err: err}
	}
	return e.addFragment(f)
}

// wantsFragments says whether a policy may declare fragments.
func wantsFragments(constants map[string]ast.Value) bool {
	data, ok := constants["policy_data"].(ast.Object)
	return !ok || member(data, "fragments") != nil
}

func (p *policy) hasFragment(m *fragment.Message) bool {
	return slices.ContainsFunc(p.fragments, func(f loadedFragment) bool {
		return f.Issuer == m.Issuer && f.Feed == m.Feed && f.SVN == m.SVN && f.payload == string(m.Payload)
	})
}

func fragmentInput(m *fragment.Message, expired bool) *input {
	b := &termBuilder{}
	return &input{
		term: b.Object([]string{"issuer", "feed", "svn", "expired"},
			[]*ast.Term{b.String(m.Issuer), b.String(m.Feed), b.Uint(m.SVN), b.Bool(expired)}),
		secrets: &secrets{},
	}
}

// addFragment compiles the policy anew with one fragment more.
func (e *Engine) addFragment(f loadedFragment) error {
	old := e.policy
	if old.text == "" {
		return &FragmentError{Err: errors.New("the policy declares no fragments")}
	}
	if len(old.fragments) >= maxFragments {
		return &FragmentError{Err: fmt.Errorf("the policy has %d fragments, which is the limit", maxFragments)}
	}
	all := append(slices.Clone(old.fragments), f)
	constant, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return &FragmentError{Err: err}
	}
	p, err := compile(old.text + "\n\n" + fragmentsConstant + " := " + string(constant) + "\n")
	if err != nil {
		return &FragmentError{Err: fmt.Errorf("with it the policy cannot be used: %w", err)}
	}
	p.text, p.fragments, p.store, p.writers = old.text, all, old.store, old.writers
	p.insecureAllowFailing, p.undoFailed = old.insecureAllowFailing, old.undoFailed
	e.policy = p
	e.log.Info("policy fragment loaded", "feed", f.Feed, "svn", f.SVN, "containers", len(f.Containers))
	return nil
}

// readFragment reads the module of a verified message, which has the package agent_policy.fragments["<feed>"] and defines the constants
// svn and containers, and may define issuer. Both svn and issuer must be those of the header.
func readFragment(m *fragment.Message) (loadedFragment, error) {
	f := loadedFragment{Issuer: m.Issuer, Feed: m.Feed, SVN: m.SVN, payload: string(m.Payload)}
	if err := checkText(f.payload); err != nil {
		return f, err
	}
	module, err := ast.ParseModuleWithOpts("fragment", f.payload, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err != nil {
		return f, fmt.Errorf("parsing its module: %w", err)
	}
	if module == nil {
		return f, errors.New("its module is empty")
	}
	want := ast.MustParseRef("data.agent_policy.fragments").Append(ast.StringTerm(m.Feed))
	if !module.Package.Path.Equal(want) {
		return f, fmt.Errorf("its package is %s, want %s", strings.TrimPrefix(module.Package.Path.String(), "data."), strings.TrimPrefix(want.String(), "data."))
	}
	seen := map[string]bool{}
	for _, r := range module.Rules {
		name, ok := constantRule(r)
		if !ok || seen[name] {
			return f, fmt.Errorf("line %d of its module is no constant, or one that it has already; a fragment has no rules", r.Location.Row)
		}
		seen[name] = true
		v, err := ast.JSON(r.Head.Value.Value)
		if err == nil {
			err = f.constant(name, v)
		}
		if err != nil {
			return f, fmt.Errorf("line %d of its module: %s: %w", r.Location.Row, name, err)
		}
	}
	if !seen["svn"] || !seen["containers"] {
		return f, errors.New("its module does not define both svn and containers")
	}
	return f, nil
}

func (f *loadedFragment) constant(name string, v any) error {
	switch name {
	case "issuer":
		if v != f.Issuer {
			return fmt.Errorf("it is not that of the header, %q", f.Issuer)
		}
	case "svn":
		if s := fmt.Sprint(v); s != fmt.Sprint(f.SVN) {
			return fmt.Errorf("%.40s is not the version of the header, %d", s, f.SVN)
		}
	case "containers":
		list, ok := v.([]any)
		if !ok || len(list) == 0 || len(list) > maxFragmentContainers {
			return fmt.Errorf("want a list of 1 to %d containers", maxFragmentContainers)
		}
		for i, c := range list {
			if _, ok := c.(map[string]any); !ok {
				return fmt.Errorf("element %d is no object", i)
			}
		}
		f.Containers = list
	default:
		return errors.New("a fragment has no such constant")
	}
	return nil
}
