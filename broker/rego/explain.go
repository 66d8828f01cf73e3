package rego

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Finding is one expression of a policy that did not hold.
type Finding struct {
	Policy     string `json:"policy"`
	Rule       string `json:"rule"`
	Line       int    `json:"line"`
	Expression string `json:"expression"`
	// Claim is the path of the input the expression looked at, without the leading "input."; empty when it looked at none.
	Claim string `json:"claim,omitempty"`
	// Got is the value of the claim, absent when the input has no such claim.
	Got json.RawMessage `json:"got,omitempty"`
	// Reference is the reference value the claim was compared with, if any.
	Reference string `json:"reference,omitempty"`
	// Expected is what would have been accepted: the reference value, or the constant of a comparison; null when no
	// reference value of that name is registered.
	Expected json.RawMessage `json:"expected,omitempty"`
}

// String is the finding as a person reads it.
func (f Finding) String() string {
	if f.Claim == "" {
		return fmt.Sprintf("rule %q, line %d does not hold: %s", f.Rule, f.Line, short(f.Expression))
	}
	got := f.Claim + " is absent"
	if f.Got != nil {
		got = f.Claim + " = " + short(text(f.Got))
	}
	switch {
	case f.Reference != "" && (f.Expected == nil || string(f.Expected) == "null"):
		return fmt.Sprintf("%s, but no reference value %q is registered", got, f.Reference)
	case f.Reference != "":
		var list []json.RawMessage
		if json.Unmarshal(f.Expected, &list) != nil {
			return fmt.Sprintf("%s does not match the registered value of %q, %s", got, f.Reference, short(text(f.Expected)))
		}
		if len(list) == 1 {
			return fmt.Sprintf("%s is not the registered value of %q, %s", got, f.Reference, short(text(list[0])))
		}
		return fmt.Sprintf("%s is not one of the %d registered values of %q", got, len(list), f.Reference)
	case f.Expected != nil:
		return fmt.Sprintf("%s, want %s", got, short(text(f.Expected)))
	default:
		return fmt.Sprintf("%s does not satisfy %s (rule %q, line %d)", got, short(f.Expression), f.Rule, f.Line)
	}
}

// text is JSON as text: a string without its quotes when that is unambiguous.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && s != "" && strings.Trim(s, "0123456789abcdef") == "" {
		return s
	}
	return string(raw)
}

func short(s string) string {
	const most = 96
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		return s[:most] + ".."
	}
	return s
}

// maxFindings bounds an explanation.
const maxFindings = 32

// Explain tells why rules of the policy do not have the value one hoped for: which expressions of their bodies, and of
// the rules these use, do not hold. A body that begins with a bare reference to the input which is undefined, such as
// "input.tpm", is for other evidence and is left out. A policy that has none of the rules is explained as a whole.
func (e *Evaluation) Explain(ctx context.Context, rules ...string) ([]Finding, error) {
	x := &explainer{e: e, seen: map[string]bool{}}
	var wanted []string
	for _, r := range rules {
		if len(e.policy.rules[r]) > 0 {
			wanted = append(wanted, r)
		}
	}
	if wanted == nil {
		for _, r := range e.policy.module.Rules {
			wanted = append(wanted, ruleName(r))
		}
	}
	var all []Finding
	for _, name := range wanted {
		found, err := x.name(ctx, name, 0)
		if err != nil {
			return nil, fmt.Errorf("explaining policy %s: %w", e.policy.id, err)
		}
		all = append(all, found...)
	}
	all = distinct(all)
	return all[:min(len(all), maxFindings)], nil
}

type explainer struct {
	e    *Evaluation
	seen map[string]bool
}

func ruleName(r *ast.Rule) string {
	ref := r.Head.Ref()
	return strings.TrimPrefix(ref[:1].String(), "data.policy.")
}

// name explains every alternative of a rule.
func (x *explainer) name(ctx context.Context, name string, depth int) ([]Finding, error) {
	const maxDepth = 8
	if x.seen[name] || depth > maxDepth {
		return nil, nil
	}
	x.seen[name] = true
	var found []Finding
	for _, r := range x.e.policy.rules[name] {
		for alt := r; alt != nil; alt = alt.Else {
			if alt.Default || len(alt.Head.Args) > 0 {
				continue
			}
			more, err := x.body(ctx, name, alt.Body, depth)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
		}
	}
	return withClaims(found), nil
}

// body evaluates the expressions of a body in order, each together with those before it that hold.
func (x *explainer) body(ctx context.Context, rule string, body ast.Body, depth int) ([]Finding, error) {
	var held ast.Body
	var places []byte // of those that hold
	var before *watcher
	var found []Finding
	for i, expr := range body {
		asked := append(held[:len(held):len(held)], expr)
		q, err := x.e.policy.query(queryKey{expr: expr, text: string(places)}, func() ast.Body { return asked })
		if errors.Is(err, errCompile) {
			continue // it needs a variable of an expression that did not hold
		}
		if err != nil {
			return nil, err
		}
		watch := &watcher{e: x.e}
		terms, err := x.e.run(ctx, q, "", watch)
		if err != nil {
			return nil, err
		}
		if len(terms) > 0 {
			held, before = asked, watch
			places = binary.AppendUvarint(places, uint64(i))
			continue
		}
		if i == 0 && bareInput(expr) {
			return nil, nil
		}
		var inner []Finding
		for _, used := range x.uses(expr) {
			more, err := x.name(ctx, used, depth+1)
			if err != nil {
				return nil, err
			}
			inner = append(inner, more...)
		}
		if len(inner) == 0 {
			inner = watch.findings(rule, expr, before)
		}
		found = append(found, inner...)
	}
	return found, nil
}

// bareInput reports whether an expression is nothing but a reference to the input.
func bareInput(expr *ast.Expr) bool {
	term, ok := expr.Terms.(*ast.Term)
	if !ok || expr.Negated {
		return false
	}
	ref, ok := term.Value.(ast.Ref)
	return ok && ref.HasPrefix(ast.InputRootRef)
}

// uses lists the rules of the policy that an expression refers to.
func (x *explainer) uses(expr *ast.Expr) []string {
	var names []string
	add := func(name string) {
		if len(x.e.policy.rules[name]) > 0 {
			names = append(names, name)
		}
	}
	ast.WalkTerms(expr, func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Var:
			add(string(v))
		case ast.Ref:
			if v.HasPrefix(policyRef()) && len(v) > 2 {
				if s, ok := v[2].Value.(ast.String); ok {
					add(string(s))
				}
			}
		}
		return false
	})
	return names
}

// watcher is a tracer that notes which claims and reference values an evaluation touches.
type watcher struct {
	e          *Evaluation
	claims     []ast.Ref
	references []string
}

// Enabled is part of topdown.QueryTracer.
func (w *watcher) Enabled() bool { return true }

// Config is part of topdown.QueryTracer.
func (w *watcher) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// TraceEvent is part of topdown.QueryTracer. Every input reference of an expression that is evaluated or fails is noted,
// with its variables replaced by their values.
func (w *watcher) TraceEvent(evt topdown.Event) {
	const most = 256
	if (evt.Op != topdown.EvalOp && evt.Op != topdown.FailOp) || len(w.claims) > most {
		return
	}
	expr, ok := evt.Node.(*ast.Expr)
	if !ok {
		return
	}
	ast.WalkRefs(expr, func(ref ast.Ref) bool {
		if !ref.HasPrefix(ast.InputRootRef) || len(ref) < 2 {
			return false
		}
		plugged, ok := evt.Plug(ast.NewTerm(ref)).Value.(ast.Ref)
		if ok && plugged.IsGround() {
			w.claims = append(w.claims, plugged)
		}
		return false
	})
}

func (w *watcher) reference(name string) { w.references = append(w.references, name) }

// findings turns what was touched by a failed expression into findings. What the expression names itself counts; when it
// names nothing, what the functions it calls looked at, without what the expressions before it had looked at already.
func (w *watcher) findings(rule string, expr *ast.Expr, before *watcher) []Finding {
	f := Finding{Policy: w.e.policy.id, Rule: rule, Expression: string(expr.Location.Text), Line: expr.Location.Row}
	claims, references := named(expr)
	if claims == nil {
		claims = fresh(w.claims, before, func(b *watcher) []string { return b.texts() }, ast.Ref.String)
	}
	if references == nil {
		references = fresh(w.references, before, func(b *watcher) []string { return b.references }, strings.Clone)
	}
	if len(references) > 0 {
		f.Reference = references[len(references)-1]
		f.Expected = w.e.seen[f.Reference]
	} else {
		f.Expected = constant(expr)
	}
	if len(claims) == 0 {
		return []Finding{f}
	}
	var found []Finding
	done := map[string]bool{}
	for i := len(claims) - 1; i >= 0; i-- {
		one := f
		one.Claim = strings.TrimPrefix(claims[i].String(), "input.")
		if done[one.Claim] {
			continue
		}
		done[one.Claim] = true
		one.Got = w.value(claims[i])
		found = append(found, one)
	}
	// A reference value is compared with one claim: the last one that was read.
	if f.Reference != "" {
		found = found[:1]
	}
	return found
}

// named lists the claims and the reference values that an expression names literally.
func named(expr *ast.Expr) (claims []ast.Ref, references []string) {
	ast.WalkRefs(expr, func(ref ast.Ref) bool {
		if ref.HasPrefix(ast.InputRootRef) && len(ref) > 1 && ref.IsGround() {
			claims = append(claims, ref)
		}
		return false
	})
	note := func(terms []*ast.Term) {
		if len(terms) != 2 || terms[0].Value.String() != lookupName {
			return
		}
		if name, ok := terms[1].Value.(ast.String); ok {
			references = append(references, string(name))
		}
	}
	if terms, ok := expr.Terms.([]*ast.Term); ok {
		note(terms)
	}
	ast.WalkTerms(expr, func(t *ast.Term) bool {
		if call, ok := t.Value.(ast.Call); ok {
			note(call)
		}
		return false
	})
	return claims, references
}

// fresh is what a watcher saw and an earlier one did not.
func fresh[T any](all []T, before *watcher, old func(*watcher) []string, text func(T) string) []T {
	if before == nil {
		return all
	}
	var out []T
	for _, v := range all {
		if !slices.Contains(old(before), text(v)) {
			out = append(out, v)
		}
	}
	return out
}

func (w *watcher) texts() []string {
	var out []string
	for _, c := range w.claims {
		out = append(out, c.String())
	}
	return out
}

func (w *watcher) value(ref ast.Ref) json.RawMessage {
	v, err := w.e.input.Value.Find(ref[1:])
	if err != nil {
		return nil
	}
	plain, err := ast.JSON(v)
	if err != nil {
		return nil
	}
	raw, err := json.Marshal(plain)
	if err != nil {
		return nil
	}
	return raw
}

// constant returns the constant side of an equality, such as "ek-certificate" in input.x == "ek-certificate".
func constant(expr *ast.Expr) json.RawMessage {
	if expr.Negated || !expr.IsCall() || len(expr.Operands()) != 2 {
		return nil
	}
	switch expr.Operator().String() {
	case ast.Equal.Name, ast.Equality.Name:
	default:
		return nil
	}
	for _, t := range expr.Operands() {
		if !ast.IsConstant(t.Value) {
			continue
		}
		plain, err := ast.JSON(t.Value)
		if err != nil {
			return nil
		}
		raw, err := json.Marshal(plain)
		if err != nil {
			return nil
		}
		return raw
	}
	return nil
}

// withClaims drops the findings without a claim when others have one: they are switches, not measurements.
func withClaims(found []Finding) []Finding {
	var out []Finding
	for _, f := range found {
		if f.Claim != "" {
			out = append(out, f)
		}
	}
	if out == nil {
		return found
	}
	return out
}

func distinct(found []Finding) []Finding {
	seen := map[string]bool{}
	var out []Finding
	for _, f := range found {
		key := f.Claim + "\x00" + f.Reference + "\x00" + string(f.Expected) + "\x00" + f.Expression
		if !seen[key] {
			seen[key] = true
			out = append(out, f)
		}
	}
	return out
}

// Summary joins findings to one line.
func Summary(found []Finding) string {
	parts := make([]string, 0, len(found))
	for _, f := range found {
		parts = append(parts, f.String())
	}
	return strings.Join(parts, "; ")
}
