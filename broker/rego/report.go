package rego

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Check is one expression of a policy, with what it looked at and whether it holds.
type Check struct {
	// Of is the rule that was asked about, such as "executables". Rule, in Finding, is the one that the expression stands
	// in, which may be another that the first one uses.
	Of string `json:"of"`
	Finding
	Holds bool `json:"holds"`
	// Other says that the body is for other evidence: it begins with a bare reference to the input which is undefined.
	Other bool `json:"other,omitempty"`
}

// Has tells whether the policy has a rule.
func (p *Policy) Has(rule string) bool {
	for _, r := range p.module.Rules {
		if ruleName(r) == rule {
			return true
		}
	}
	return false
}

// maxChecks bounds a report.
const maxChecks = 256

// Report tells of rules what each of their expressions says, those that hold too. Of a body for other evidence there is only
// its first expression. Of a rule with several bodies
// that another one uses, only those that hold are told of, when there are any.
func (e *Evaluation) Report(ctx context.Context, rules ...string) ([]Check, error) {
	x := &explainer{e: e}
	var all []Check
	for _, name := range rules {
		x.seen = map[string]bool{}
		found, _, err := x.report(ctx, name, 0)
		if err != nil {
			return nil, fmt.Errorf("reporting on policy %s: %w", e.policy.id, err)
		}
		for _, c := range found {
			c.Of = name
			all = append(all, c)
		}
	}
	return all[:min(len(all), maxChecks)], nil
}

// report tells of every alternative of a rule, and whether one holds.
func (x *explainer) report(ctx context.Context, name string, depth int) (all []Check, holds bool, err error) {
	const maxDepth = 8
	if x.seen[name] || depth > maxDepth {
		return nil, false, nil
	}
	x.seen[name] = true
	var held []Check
	for _, r := range x.e.policy.rules[name] {
		for alt := r; alt != nil; alt = alt.Else {
			if alt.Default || len(alt.Head.Args) > 0 {
				continue
			}
			found, ok, err := x.reportBody(ctx, name, alt.Body, depth)
			if err != nil {
				return nil, false, err
			}
			if all = append(all, found...); ok {
				held = append(held, found...)
				break // what follows with "else" was not asked
			}
		}
	}
	if depth > 0 && held != nil {
		all = held
	}
	return all, held != nil, nil
}

// reportBody evaluates the expressions of a body in order, each together with those before it that hold.
func (x *explainer) reportBody(ctx context.Context, rule string, body ast.Body, depth int) ([]Check, bool, error) {
	var held ast.Body
	var places []byte // of those that hold
	var before *watcher
	var found []Check
	all := true
	for i, expr := range body {
		asked := append(held[:len(held):len(held)], expr)
		q, err := x.e.policy.query(queryKey{expr: expr, text: string(places)}, func() ast.Body { return asked })
		if errors.Is(err, errCompile) {
			all = false
			continue // it needs a variable of an expression that did not hold
		}
		if err != nil {
			return nil, false, err
		}
		watch := &watcher{e: x.e}
		terms, err := x.e.run(ctx, q, "", watch)
		if err != nil {
			return nil, false, err
		}
		ok := len(terms) > 0
		if i == 0 && bareInput(expr) {
			if !ok {
				for _, f := range watch.findings(rule, expr, before) {
					found = append(found, Check{Finding: f, Other: true})
				}
				return found, false, nil
			}
			held, before = asked, watch
			places = binary.AppendUvarint(places, uint64(i))
			continue
		}
		var inner []Check
		for _, used := range x.uses(expr) {
			more, _, err := x.report(ctx, used, depth+1)
			if err != nil {
				return nil, false, err
			}
			inner = append(inner, more...)
		}
		if len(inner) == 0 {
			for _, f := range watch.findings(rule, expr, before) {
				inner = append(inner, Check{Finding: f, Holds: ok})
			}
		}
		found = append(found, inner...)
		if ok {
			held, before = asked, watch
			places = binary.AppendUvarint(places, uint64(i))
		}
		all = all && ok
	}
	return found, all, nil
}
