package gate

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// foldTime bounds what is computed when a policy is loaded. What is not ready by then is computed for each request.
const foldTime = 5 * time.Second

// A policy has constants: policy_data, and what its rules make of that alone. Both are kept out of the compiler, which
// copies and walks all that it is given, and are put into the compiled rules afterwards. Equal parts are there once.

// takeConstants moves the values of rules such as `policy_data := {...}` out of a parsed module.
func takeConstants(module *ast.Module) map[string]ast.Value {
	constants := map[string]ast.Value{}
	shared := sharing{}
	for _, r := range module.Rules {
		name, ok := constantRule(r)
		if !ok || slices.ContainsFunc(module.Rules, func(o *ast.Rule) bool { return o != r && ruleGroup(o) == name }) {
			continue
		}
		constants[name] = shared.value(r.Head.Value.Value)
		r.Head.Value = ast.NullTerm()
	}
	return constants
}

// constantRule reports rules that are one ground value under one name.
func constantRule(r *ast.Rule) (string, bool) {
	if r.Default || len(r.Head.Args) > 0 || r.Head.Key != nil || r.Head.Value == nil || !ast.IsConstant(r.Head.Value.Value) || len(r.Head.Reference) != 1 {
		return "", false
	}
	if len(r.Body) != 1 || !r.Body[0].Equal(ast.NewExpr(ast.InternedTerm(true))) {
		return "", false
	}
	name := ruleGroup(r)
	return name, name != ""
}

// ruleGroup is the name below the package to which a rule contributes.
func ruleGroup(r *ast.Rule) string {
	if len(r.Head.Reference) == 0 {
		return ""
	}
	v, _ := r.Head.Reference[0].Value.(ast.Var)
	return string(v)
}

func putConstants(c *ast.Compiler, constants map[string]ast.Value) {
	for _, r := range c.Modules["policy"].Rules {
		if name, ok := constantRule(r); ok && constants[name] != nil {
			r.Head.Value = ast.NewTerm(constants[name])
		}
	}
}

// fold computes the rules that depend on nothing but the policy, once, and makes constants of them. Rules whose value is
// undefined, or that cannot be evaluated, stay as they are.
func fold(c *ast.Compiler, module *ast.Module, version ast.RegoVersion, constants map[string]ast.Value) (*ast.Compiler, error) {
	ctx, cancel := context.WithTimeout(context.Background(), foldTime)
	defer cancel()
	p := &policy{compiler: c, queries: map[string]*query{}, store: newStore()}
	found := map[string]bool{}
	shared := sharing{}
	for _, name := range pureGroups(c) {
		if constants[name] != nil {
			continue
		}
		v, err := p.evaluate(ctx, name, emptyInput(), func(q *topdown.Query) *topdown.Query { return q })
		if err == nil && ast.IsConstant(v) {
			constants[name], found[name] = shared.value(v), true
		}
	}
	if len(found) == 0 {
		return c, nil
	}
	folded := module.Copy()
	done := map[string]bool{}
	folded.Rules = slices.DeleteFunc(folded.Rules, func(r *ast.Rule) bool {
		name := ruleGroup(r)
		again := done[name]
		if !found[name] || again {
			return again
		}
		done[name] = true
		r.Head = &ast.Head{Name: ast.Var(name), Reference: ast.Ref{ast.VarTerm(name)}, Value: ast.NullTerm(), Assign: true, Location: r.Head.Location}
		r.Body, r.Else = ast.NewBody(ast.NewExpr(ast.BooleanTerm(true))), nil
		return false
	})
	c, err := compileModule(folded, version, constants)
	if err != nil {
		return nil, fmt.Errorf("with the policy's tables computed: %w", err)
	}
	return c, nil
}

// pureGroups are the names whose rules, and all that these depend on, look neither at the request nor at the state.
func pureGroups(c *ast.Compiler) []string {
	impure := map[*ast.Rule]bool{}
	state := map[*ast.Rule]bool{} // visited
	var visit func(r *ast.Rule) bool
	visit = func(r *ast.Rule) bool {
		if state[r] {
			return !impure[r]
		}
		state[r] = true // Rego has no recursion
		impure[r] = looksOutside(r)
		for dep := range c.Graph.Dependencies(r) {
			if d, ok := dep.(*ast.Rule); ok && !visit(d) {
				impure[r] = true
			}
		}
		return !impure[r]
	}
	var names []string
	bad := map[string]bool{}
	for _, r := range c.Modules["policy"].Rules {
		name := ruleGroup(r)
		if r.Default || len(r.Head.Args) > 0 || !ruleName(name) || !visit(r) {
			bad[name] = true
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return bad[name] })
}

// looksOutside says whether a rule itself uses the request, data other than the policy's rules, replaced documents or
// print.
func looksOutside(r *ast.Rule) bool {
	outside := false
	ast.WalkExprs(r, func(x *ast.Expr) bool {
		outside = outside || len(x.With) > 0 || x.IsCall() && x.Operator().String() == "internal.print"
		return outside
	})
	ast.WalkRefs(r, func(ref ast.Ref) bool {
		switch {
		case ref[0].Equal(ast.InputRootDocument):
			outside = true
		case ref[0].Equal(ast.DefaultRootDocument):
			if len(ref) < 3 || !ref[1].Equal(ast.StringTerm("agent_policy")) || !ref[2].IsGround() {
				outside = true
			}
		}
		return outside
	})
	ast.WalkVars(r, func(v ast.Var) bool {
		outside = outside || v.Equal(ast.InputRootDocument.Value)
		return outside
	})
	return outside
}

// sharing keeps one of each value.
type sharing map[int][]*ast.Term

func (s sharing) value(v ast.Value) ast.Value { return s.term(v).Value }

func (s sharing) term(v ast.Value) *ast.Term {
	hash := v.Hash()
	for _, t := range s[hash] {
		if sameKind(t.Value, v) && t.Value.Compare(v) == 0 {
			return t
		}
	}
	switch x := v.(type) {
	case *ast.Array:
		terms := make([]*ast.Term, x.Len())
		for i := range terms {
			terms[i] = s.term(x.Elem(i).Value)
		}
		v = ast.NewArray(terms...)
	case ast.Object:
		items := make([][2]*ast.Term, 0, x.Len())
		x.Foreach(func(k, w *ast.Term) { items = append(items, ast.Item(s.term(k.Value), s.term(w.Value))) })
		v = ast.NewObject(items...)
	case ast.Set:
		terms := make([]*ast.Term, 0, x.Len())
		x.Foreach(func(w *ast.Term) { terms = append(terms, s.term(w.Value)) })
		v = ast.NewSet(terms...)
	}
	t := ast.NewTerm(v)
	s[hash] = append(s[hash], t)
	return t
}

// sameKind keeps 1 and 1.0 apart, which compare equal.
func sameKind(a, b ast.Value) bool {
	x, number := a.(ast.Number)
	y, other := b.(ast.Number)
	return !number && !other || number && other && x == y
}
