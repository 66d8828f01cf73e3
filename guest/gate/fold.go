package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// foldTime bounds what is computed when a policy is loaded. What is not ready by then is computed for each request.
const foldTime = 20 * time.Second

// A policy has constants: policy_data, and what its rules make of that alone. Both are kept out of the compiler, which
// copies and walks all that it is given, and are put into the compiled rules afterwards. Equal parts are there once.

// dataRule begins what generators put behind the rules.
const dataRule = "\npolicy_data := "

// splitData takes JSON out of the end of a text: it is read ten times faster than the same as Rego. What is left says null
// in its place. A text that does not end like that comes back as it is, without data.
func splitData(text string) (rules string, data ast.Value) {
	i := strings.LastIndex(text, dataRule)
	if i < 0 {
		return text, nil
	}
	at := i + len(dataRule)
	if !strings.HasPrefix(text[at:], "{") {
		return text, nil
	}
	d := json.NewDecoder(strings.NewReader(text[at:]))
	d.UseNumber()
	var v map[string]any
	if d.Decode(&v) != nil || strings.TrimSpace(text[at+int(d.InputOffset()):]) != "" {
		return text, nil
	}
	data, err := ast.InterfaceToValue(v)
	if err != nil {
		return text, nil
	}
	return text[:at] + "null\n", data
}

// takeConstants moves the values of rules such as `policy_data := {...}` out of a parsed module. data is what splitData
// has found.
func takeConstants(module *ast.Module, data ast.Value) map[string]ast.Value {
	constants := map[string]ast.Value{}
	shared := sharing{}
	for _, r := range module.Rules {
		name, ok := constantRule(r)
		if ok && data != nil && name == "policy_data" && r == module.Rules[len(module.Rules)-1] {
			r.Head.Value = ast.NewTerm(data)
		}
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
	names := slices.DeleteFunc(pureGroups(c), func(name string) bool { return constants[name] != nil })
	for name, v := range p.values(ctx, names) {
		if ast.IsConstant(v) {
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
	dropUnused(folded)
	dropLocations(folded)
	c, err := compileModule(folded, version, constants)
	if err != nil {
		return nil, fmt.Errorf("with the policy's tables computed: %w", err)
	}
	return c, nil
}

// dropUnused takes functions out of a module that nothing calls any more: those that only made tables. A function is never
// asked for by name, other than a rule.
func dropUnused(module *ast.Module) {
	functions := map[string][]*ast.Rule{}
	var todo []*ast.Rule
	for _, r := range module.Rules {
		if len(r.Head.Args) > 0 {
			functions[ruleGroup(r)] = append(functions[ruleGroup(r)], r)
		} else {
			todo = append(todo, r)
		}
	}
	// Any name that a rule mentions counts as called. It may stand alone, or behind data and the package.
	used := func(name string) {
		todo = append(todo, functions[name]...)
		delete(functions, name)
	}
	for len(todo) > 0 {
		r := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		ast.WalkTerms(r, func(t *ast.Term) bool {
			switch v := t.Value.(type) {
			case ast.Var:
				used(string(v))
			case ast.String:
				used(string(v))
			}
			return false
		})
	}
	module.Rules = slices.DeleteFunc(module.Rules, func(r *ast.Rule) bool { return len(r.Head.Args) > 0 && functions[ruleGroup(r)] != nil })
}

// dropLocations leaves every term with the place of its expression: nothing tells people of a smaller one, and each takes
// as much memory as the term.
func dropLocations(module *ast.Module) {
	for _, r := range module.Rules {
		ast.WalkTerms(r, func(t *ast.Term) bool { t.Location = r.Location; return false })
		ast.WalkExprs(r, func(x *ast.Expr) bool {
			ast.WalkTerms(x, func(t *ast.Term) bool { t.Location = x.Location; return false })
			return false
		})
	}
}

// values evaluates rules without input, all in one query, so that what one of them needs of another is computed once. If
// any of them is in error, each is evaluated alone.
func (p *policy) values(ctx context.Context, names []string) map[string]ast.Value {
	out := map[string]ast.Value{}
	var body ast.Body
	answer := ast.VarTerm("v")
	for i, name := range names {
		ref := append(ast.MustParseRef(packagePath), ast.StringTerm(name))
		inner := ast.NewBody(ast.Equality.Expr(answer, ast.NewTerm(ref)))
		body.Append(ast.Equality.Expr(ast.VarTerm("x"+strconv.Itoa(i)), ast.ArrayComprehensionTerm(answer, inner)))
	}
	compiled, err := p.compiler.QueryCompiler().Compile(body)
	if err == nil && len(names) > 0 {
		var found topdown.QueryResult
		found, err = p.run(ctx, compiled, emptyInput(), func(q *topdown.Query) *topdown.Query { return q })
		for i, name := range names {
			if t := found[ast.Var("x"+strconv.Itoa(i))]; err == nil && t != nil {
				if a, ok := t.Value.(*ast.Array); ok && a.Len() == 1 {
					out[name] = a.Elem(0).Value
				}
			}
		}
	}
	if err == nil {
		return out
	}
	for _, name := range names {
		v, err := p.evaluate(ctx, name, emptyInput(), func(q *topdown.Query) *topdown.Query { return q })
		if err == nil {
			out[name] = v
		}
	}
	return out
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
		if exact(t.Value, v) {
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

// exact says whether two values are the same to the letter: 1 and 1.0 compare equal, but print differently.
func exact(a, b ast.Value) bool {
	if a.Compare(b) != 0 {
		return false
	}
	switch a := a.(type) {
	case ast.Number:
		other, ok := b.(ast.Number)
		return ok && a == other
	case *ast.Array:
		for i := range a.Len() {
			if !exact(a.Elem(i).Value, b.(*ast.Array).Elem(i).Value) {
				return false
			}
		}
	case ast.Object:
		other := b.(ast.Object)
		return !a.Until(func(k, v *ast.Term) bool {
			w := other.Get(k)
			return w == nil || !exact(v.Value, w.Value)
		})
	case ast.Set:
		return a.String() == b.String()
	}
	return true
}
