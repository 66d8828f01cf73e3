// Package consoletest makes a console with everything behind it real but the tenants, the counters and who is an administrator:
// for the tests of the console and for those in a browser (test/browser).
package consoletest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/console"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

// The tokens of the world's administrators.
const (
	Token       = "cloister-admin-9fKq2vWcTokenOfEverything" // may do everything
	ReaderToken = "cloister-admin-7dQxTokenWhoOnlyReads"     // may only GET
	WriterToken = "cloister-admin-1pLmTokenOfTeamA"          // may list and write resources of team-a
	TenantToken = "cloister-tenant-5sYtTokenOfANewTenant"    // of every tenant that is made
	// Secret is the value of the world's resources.
	Secret = "correct horse battery staple"
	// Hostile is a text that a guest says of itself.
	Hostile = `"><script>alert('guest')</script><img src=x onerror=alert(1)>` + "\u202egnp.exe"
)

// World is a console and what is behind it.
type World struct {
	Console   *console.Console
	Parts     console.Parts
	Decisions *decision.Store
	Resources *resource.Store
	Policies  *rego.Set
	Audit     *audit.Log
	AuditFile string
	Tenants   *Tenants
	// Good, Bad and Bitten are the ids of attestations: affirmed, refused for one measurement, and of a hostile guest. Refused is
	// that of a resource request that relied on Bad.
	Good, Bad, Bitten, Refused string

	mu       sync.Mutex
	now      time.Time
	counters console.Counters
	// NoteError is returned by Note from then on.
	noteError error
	caller    adminauth.Call
}

// Now is the world's time.
func (w *World) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Wait lets time pass.
func (w *World) Wait(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// BreakAudit makes every audit entry fail from now on.
func (w *World) BreakAudit(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteError = err
}

// Certify makes every request come with a client certificate of a call from now on.
func (w *World) Certify(c adminauth.Call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.caller = c
}

// Attest counts one more attestation.
func (w *World) Attest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counters.Attested++
}

// Admit is that of console's admins.
func (w *World) Admit(_ context.Context, c adminauth.Call) (string, error) {
	switch c.Bearer {
	case Token:
		return "ann", nil
	case ReaderToken:
		if c.Method == http.MethodGet {
			return "rob (role reader)", nil
		}
	case WriterToken:
		if c.Method == http.MethodGet && c.Path == "/cloister/v1/resources" || strings.HasPrefix(c.Path, "/kbs/v0/resource/team-a/") {
			return "wil (role team-a)", nil
		}
	default:
		return "", fmt.Errorf("%w: the token is not one of this broker", adminauth.ErrDenied)
	}
	return "", fmt.Errorf("%w: no rule lets this role do %s %s", adminauth.ErrDenied, c.Method, c.Path)
}

// DryRun is that of console.DryRun, with the broker's own engine.
func (w *World) DryRun(ctx context.Context, r decision.Record, policyID, text string) ([]decision.Part, error) {
	policy, err := rego.Compile(policyID, text)
	if err != nil {
		return nil, err
	}
	var out []decision.Part
	for _, p := range r.Parts {
		class := strings.TrimRight(p.Name, "0123456789")
		if !strings.HasSuffix(policyID, "_"+class) {
			continue
		}
		var input map[string]any
		if err := json.Unmarshal(p.Evidence, &input); err != nil {
			return nil, err
		}
		one, err := Appraise(ctx, policy, w.Parts.References.(*refstore.Store), input)
		if err != nil {
			return nil, err
		}
		one.Name, one.TEE = p.Name, p.TEE
		out = append(out, *one)
	}
	return out, nil
}

// Appraise evaluates a policy as package appraise does.
func Appraise(ctx context.Context, policy *rego.Policy, refs *refstore.Store, input map[string]any) (*decision.Part, error) {
	e, err := policy.Begin(rego.Document{Input: input, Data: map[string]any{"cloister": map[string]any{}}, Lookup: refs.Lookup})
	if err != nil {
		return nil, err
	}
	value, _, err := e.Eval(ctx, "trust_claims")
	if err != nil {
		return nil, err
	}
	p := &decision.Part{Policy: policy.ID(), Vector: map[string]int{}, Status: appraise.StatusAffirming}
	claims, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("trust_claims is %T", value)
	}
	var weak []string
	for name, v := range claims {
		number, ok := v.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s is %T", name, v)
		}
		n, err := number.Int64()
		if err != nil {
			return nil, err
		}
		p.Vector[name] = int(n)
		if n > 31 {
			weak = append(weak, strings.ReplaceAll(name, "-", "_"))
		}
		switch {
		case n > 95:
			p.Status = appraise.StatusContraindicated
		case n > 31 && p.Status == appraise.StatusAffirming:
			p.Status = appraise.StatusWarning
		}
	}
	if len(weak) > 0 {
		if p.Findings, err = e.Explain(ctx, weak...); err != nil {
			return nil, err
		}
	}
	if p.Evidence, err = json.Marshal(input); err != nil {
		return nil, err
	}
	return p, nil
}

// New makes a world.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{now: time.Date(2026, 6, 1, 9, 30, 0, 0, time.UTC), Tenants: &Tenants{list: demoTenants()}}
	w.counters = console.Counters{
		Version: "0.3.0", Started: w.now.Add(-51 * time.Hour), Sessions: 7, Handshakes: 18234, Attested: 18102, AttestationsRefused: 61,
		Released: 41877, ResourcesRefused: 38, Resources: 6, ReferenceValues: 8,
	}
	dir := t.TempDir()
	db, err := store.Open(filepath.Join(dir, "store.db"), store.WithClock(w.Now))
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	key, err := seal.LoadOrCreate(filepath.Join(dir, "key"))
	must(t, err)
	w.Resources, err = resource.OpenStore(db, key, resource.DefaultConfig(), w.Now)
	must(t, err)
	w.AuditFile = filepath.Join(dir, "audit.jsonl")
	w.Audit, err = audit.Open(w.AuditFile, audit.Options{Now: w.Now})
	must(t, err)
	t.Cleanup(func() { must(t, w.Audit.Close()) })
	refs := refstore.New(db, w.Now, 0)
	w.Policies = rego.NewSet(db, appraise.Namespace)
	_, err = appraise.New(t.Context(), w.Policies, refs, nil)
	must(t, err)
	resourcePolicies := rego.NewSet(db, resource.PolicyNamespace)
	gate, err := resource.NewGate(t.Context(), resourcePolicies)
	must(t, err)
	w.Decisions = decision.NewStore(db, 0)
	w.Parts = console.Parts{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: w.Now, Secure: true, Admins: w,
		Caller: func(*http.Request) adminauth.Call { w.mu.Lock(); defer w.mu.Unlock(); return w.caller },
		Note: func(r *http.Request, e audit.Entry) error {
			w.mu.Lock()
			broken := w.noteError
			w.mu.Unlock()
			if broken != nil {
				return broken
			}
			id, err := decision.NewID(w.Now())
			if err != nil {
				return err
			}
			e.RequestID, e.Remote = id, "192.0.2.7"
			return w.Audit.Append(context.WithoutCancel(r.Context()), e)
		},
		Decisions: w.Decisions, Audit: w.Audit, References: refs, AttestationPolicies: w.Policies, ResourcePolicies: resourcePolicies,
		Counters: func(context.Context) (console.Counters, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.counters, nil
		},
		Resources: w.Resources, DryRun: w, Tenants: w.Tenants,
	}
	w.Console, err = console.New(w.Parts)
	must(t, err)
	w.fill(t, refs, gate)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func register(t testing.TB, refs *refstore.Store, group, by string, values map[string]any) {
	t.Helper()
	payload, err := json.Marshal(values)
	must(t, err)
	message, err := json.Marshal(refstore.Message{
		Type: "sample", Payload: base64.StdEncoding.EncodeToString(payload), Group: group, Mode: refstore.ModeAdd,
	})
	must(t, err)
	_, err = refs.Register(t.Context(), message, by)
	must(t, err)
}
