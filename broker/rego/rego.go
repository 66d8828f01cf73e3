// Package rego runs the broker's policies and explains their refusals.
//
// A policy is one Rego module. It sees an input document, a small data document, and reference values through the
// function query_reference_value; it has no network, no clock tricks and no other way out. When a policy says no, Explain
// evaluates the failing rules once more, expression by expression, and reports what each expression looked at and what
// it would have accepted. The explanation therefore comes from the policy itself: there is no second copy of its rules
// that could drift.
package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

const (
	// MaxText bounds the text of a policy.
	MaxText     = 1 << 20
	evalTimeout = 10 * time.Second
	// maxNesting bounds brackets within brackets, maxComprehensions those of comprehensions. Nothing stops the compiler once it has
	// begun, and each comprehension within another more than doubles its work: 16 take it most of a minute, and a policy of a tenant's
	// would take a processor from everybody.
	maxNesting        = 64
	maxComprehensions = 7
)

// ErrPolicy marks a policy that cannot be used: it does not parse or compile.
var ErrPolicy = errors.New("policy is not usable")

// Policy is a compiled policy. It is safe for concurrent use.
type Policy struct {
	id       string
	module   *ast.Module
	compiler *ast.Compiler
	text     string
	// rules are those of the module by name.
	rules   map[string][]*ast.Rule
	queries queries
}

// Text is what the policy was compiled from.
func (p *Policy) Text() string { return p.text }

// Document is what one evaluation sees.
type Document struct {
	Input any
	Data  map[string]any
	// Lookup answers query_reference_value; nil JSON means that there is no such value. A nil Lookup knows no value.
	Lookup func(ctx context.Context, name string) (json.RawMessage, error)
}

const lookupName = "query_reference_value"

// allowedPrefixes lists the families of built-in functions a policy may use, next to those without a dot in their name.
var allowedPrefixes = []string{
	"array.", "base64.", "base64url.", "bits.", "glob.", "hex.", "internal.", "json.", "numbers.", "object.", "regex.",
	"semver.", "strings.", "time.",
}

func allowed(name string) bool {
	switch name {
	case "print", "trace":
		return false
	}
	if !strings.Contains(name, ".") {
		return true
	}
	for _, p := range allowedPrefixes {
		if strings.HasPrefix(name, p) {
			return name != "time.now_ns"
		}
	}
	return false
}

func lookupDecl() *ast.Builtin {
	return &ast.Builtin{Name: lookupName, Decl: types.NewFunction(types.Args(types.S), types.A), Nondeterministic: true}
}

func capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	kept := make([]*ast.Builtin, 0, len(caps.Builtins)+1)
	for _, b := range caps.Builtins {
		if allowed(b.Name) {
			kept = append(kept, b)
		}
	}
	caps.Builtins = append(kept, lookupDecl())
	caps.AllowNet = []string{}
	return caps
}

// Compile parses and compiles a policy. Rego v1 is tried first, then v0, which older policies are written in. The error
// wraps ErrPolicy.
func Compile(id, text string) (*Policy, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("policy %s has %d bytes, at most %d are taken: %w", id, len(text), MaxText, ErrPolicy)
	}
	if n, c := nesting(text); n > maxNesting || c > maxComprehensions {
		return nil, fmt.Errorf("policy %s has %d brackets and %d comprehensions within each other, at most %d and %d are taken: %w",
			id, n, c, maxNesting, maxComprehensions, ErrPolicy)
	}
	caps := capabilities()
	module, err := ast.ParseModuleWithOpts(id, text, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: caps})
	if err != nil {
		v0, v0err := ast.ParseModuleWithOpts(id, text, ast.ParserOptions{RegoVersion: ast.RegoV0, Capabilities: caps})
		if v0err != nil {
			return nil, fmt.Errorf("parsing policy %s: %w: %w", id, ErrPolicy, err)
		}
		module = v0
	}
	if module == nil {
		return nil, fmt.Errorf("policy %s is empty: %w", id, ErrPolicy)
	}
	if got := module.Package.Path.String(); got != "data.policy" {
		return nil, fmt.Errorf("policy %s has %q, want \"package policy\": %w", id, module.Package, ErrPolicy)
	}
	compiler := ast.NewCompiler().WithCapabilities(caps)
	compiler.Compile(map[string]*ast.Module{id: module.Copy()})
	if compiler.Failed() {
		return nil, fmt.Errorf("compiling policy %s: %w: %w", id, ErrPolicy, compiler.Errors)
	}
	p := &Policy{id: id, text: text, module: module, compiler: compiler, rules: map[string][]*ast.Rule{}}
	for _, r := range module.Rules {
		name := ruleName(r)
		p.rules[name] = append(p.rules[name], r)
	}
	return p, nil
}

// nesting is how many brackets are within each other at most, and how many of those that have a '|', which are comprehensions or unions,
// outside of strings and comments.
func nesting(text string) (brackets, comprehensions int) {
	type bracket struct {
		bar  bool
		deep int // of what is within
	}
	stack := []bracket{{}}
	for i := 0; i < len(text); i++ {
		top := &stack[len(stack)-1]
		switch text[i] {
		case '[', '{', '(':
			stack = append(stack, bracket{})
			brackets = max(brackets, len(stack)-1)
		case ']', '}', ')':
			if len(stack) == 1 {
				continue // the parser will say so
			}
			deep := top.deep
			if top.bar {
				deep++
			}
			stack = stack[:len(stack)-1]
			outer := &stack[len(stack)-1]
			outer.deep = max(outer.deep, deep)
			comprehensions = max(comprehensions, deep)
		case '|':
			top.bar = true
		case '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case '`':
			for i++; i < len(text) && text[i] != '`'; i++ {
			}
		case '"':
			for i++; i < len(text) && text[i] != '"' && text[i] != '\n'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		}
	}
	return brackets, comprehensions
}

// ID is the name the policy was compiled with.
func (p *Policy) ID() string { return p.id }

// Eval returns the value of a rule of the policy, for example "trust_claims", and whether it is defined.
func (e *Evaluation) Eval(ctx context.Context, rule string) (any, bool, error) {
	q, err := e.policy.query(queryKey{text: rule}, func() ast.Body {
		return ast.NewBody(ast.Equality.Expr(ast.VarTerm("result"), ast.NewTerm(policyRef().Append(ast.StringTerm(rule)))))
	})
	if err != nil {
		return nil, false, fmt.Errorf("evaluating policy %s: %w", e.policy.id, err)
	}
	terms, err := e.run(ctx, q, "result", nil)
	if err != nil {
		return nil, false, fmt.Errorf("evaluating policy %s: %w", e.policy.id, err)
	}
	if len(terms) == 0 {
		return nil, false, nil
	}
	v, err := ast.JSON(terms[0].Value)
	if err != nil {
		return nil, false, fmt.Errorf("evaluating policy %s: reading %s: %w", e.policy.id, rule, err)
	}
	return v, true, nil
}

// Evaluation is one use of a policy. Its reference values are read once each, so that an explanation speaks of the
// values that the decision saw.
type Evaluation struct {
	policy *Policy
	doc    Document
	input  *ast.Term
	data   storage.Store
	seen   map[string]json.RawMessage
}

// Begin prepares the evaluation of a policy on a document. An Evaluation is for one goroutine.
func (p *Policy) Begin(doc Document) (*Evaluation, error) {
	v, err := ast.InterfaceToValue(doc.Input)
	if err != nil {
		return nil, fmt.Errorf("reading the input of policy %s: %w", p.id, err)
	}
	return &Evaluation{
		policy: p, doc: doc, input: ast.NewTerm(v), data: inmem.NewFromObject(orEmpty(doc.Data)), seen: map[string]json.RawMessage{},
	}, nil
}

// lookup is query_reference_value with memory.
func (e *Evaluation) lookup(ctx context.Context, name string) (json.RawMessage, error) {
	if v, ok := e.seen[name]; ok {
		return v, nil
	}
	var v json.RawMessage
	if e.doc.Lookup != nil {
		var err error
		if v, err = e.doc.Lookup(ctx, name); err != nil {
			return nil, fmt.Errorf("looking up reference value %q: %w", name, err)
		}
	}
	e.seen[name] = v
	return v, nil
}

// run evaluates a query and returns the values of a variable; an empty name counts results with true terms. It stops
// after maxResults.
func (e *Evaluation) run(ctx context.Context, q query, name ast.Var, watch *watcher) ([]*ast.Term, error) {
	const maxResults = 16
	ctx, stop := context.WithTimeout(ctx, evalTimeout)
	defer stop()
	txn, err := e.data.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer e.data.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	decl := lookupDecl()
	query := topdown.NewQuery(q.body).WithQueryCompiler(q.compiler).WithCompiler(e.policy.compiler).WithStore(e.data).
		WithTransaction(txn).WithInput(e.input).WithCancel(cancel).
		WithBuiltins(map[string]*topdown.Builtin{lookupName: {Decl: decl, Func: e.builtin(watch)}})
	if watch != nil {
		query = query.WithQueryTracer(watch).WithIndexing(false).WithEarlyExit(false)
	}
	var terms []*ast.Term
	errEnough := errors.New("enough")
	err = query.Iter(ctx, func(r topdown.QueryResult) error {
		if name == "" {
			terms = append(terms, ast.BooleanTerm(true))
			return errEnough
		}
		terms = append(terms, r[name])
		if len(terms) == maxResults {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("policy did not end in time: %w", context.Cause(ctx))
		}
		return nil, err
	}
	return terms, nil
}

func (e *Evaluation) builtin(watch *watcher) topdown.BuiltinFunc {
	return func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
		name, ok := operands[0].Value.(ast.String)
		if !ok {
			return iter(ast.NullTerm())
		}
		raw, err := e.lookup(bctx.Context, string(name))
		if err != nil {
			return topdown.Halt{Err: err}
		}
		if watch != nil {
			watch.reference(string(name))
		}
		if raw == nil {
			return iter(ast.NullTerm())
		}
		v, err := ast.ValueFromReader(strings.NewReader(string(raw)))
		if err != nil {
			return topdown.Halt{Err: fmt.Errorf("reading reference value %q: %w", string(name), err)}
		}
		return iter(ast.NewTerm(v))
	}
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}
