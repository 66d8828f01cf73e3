package gate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// operand is one side of a failed expression.
type operand struct {
	value ast.Value // nil when undefined
	path  string    // where it comes from
	input bool      // it is part of the request
}

// leaf reports one failed expression: got and expected for a comparison,
// otherwise the expression and the values of the request in it.
func (r *report) leaf(n *queryNode, f *failure) string {
	src := r.source(f.expr)
	if f.expr.IsEquality() && !f.expr.Negated {
		a, b := r.resolve(f.expr.Operand(0), n, f, 0), r.resolve(f.expr.Operand(1), n, f, 0)
		if text := r.comparison(a, b); text != "" {
			return fmt.Sprintf("%s%s (%s)", text, alternatives(f), src)
		}
	}
	if f.expr.IsCall() && !f.expr.Negated && f.expr.Operator().String() == ast.Member.Name && len(f.expr.Operands()) == 2 {
		a, b := r.resolve(f.expr.Operand(0), n, f, 0), r.resolve(f.expr.Operand(1), n, f, 0)
		if text := r.membership(a, b); text != "" {
			return fmt.Sprintf("%s (%s)", text, src)
		}
	}
	var facts []string
	for _, o := range r.operands(n, f) {
		if o.value == nil {
			facts = append(facts, o.path+" is undefined")
		} else if o.input || f.expr.Negated {
			facts = append(facts, fmt.Sprintf("%s is %s", o.path, r.show(o.value, o.path)))
		}
	}
	slices.Sort(facts)
	facts = slices.Compact(facts)
	text := "failed " + src
	if len(facts) > 0 {
		text = strings.Join(facts[:min(len(facts), 4)], ", ") + " (" + src + ")"
	}
	return text + alternatives(f)
}

func alternatives(f *failure) string {
	if f.others == 0 {
		return ""
	}
	return fmt.Sprintf(", and %d alternatives alike", f.others)
}

// comparison describes a == b that does not hold.
func (r *report) comparison(a, b operand) string {
	got, want := a, b
	if !got.input && want.input {
		got, want = want, got
	}
	switch {
	case got.value == nil && want.value == nil, got.path == "" && want.path == "":
		return ""
	case got.value == nil:
		return fmt.Sprintf("%s is undefined, expected %s", got.path, r.show(want.value, got.path))
	case want.value == nil:
		return fmt.Sprintf("%s is %s, nothing in the policy (%s) corresponds", got.path, r.show(got.value, got.path), want.path)
	}
	path := got.path
	if !got.input {
		path = strings.Trim(got.path+" against "+want.path, " ")
	}
	var d differ
	d.diff(path, got.value, want.value)
	if len(d.found) == 0 {
		return ""
	}
	if argPath.MatchString(path+"[") && argZero.MatchString(d.found[0].path) {
		d.found = d.found[:1] // another program: its arguments say nothing
	}
	texts := make([]string, 0, maxReasons)
	for _, x := range d.found[:min(len(d.found), maxReasons)] {
		texts = append(texts, r.difference(x))
	}
	if rest := len(d.found) - maxReasons; rest > 0 {
		texts = append(texts, fmt.Sprintf("and %d more differences", rest))
	}
	return strings.Join(texts, ", ")
}

// membership compares with the most similar element of a list.
func (r *report) membership(got, list operand) string {
	l, ok := list.value.(*ast.Array)
	if !ok || got.value == nil || !got.input {
		return ""
	}
	var best ast.Value
	least := maxDifferences + 1
	for i := range l.Len() {
		var d differ
		d.diff(got.path, got.value, l.Elem(i).Value)
		if len(d.found) < least {
			best, least = l.Elem(i).Value, len(d.found)
		}
	}
	if best == nil {
		return ""
	}
	return r.comparison(got, operand{value: best, path: list.path})
}

// operands are the references and variables of an expression.
func (r *report) operands(n *queryNode, f *failure) []operand {
	var out []operand
	visit := func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Ref:
			out = append(out, r.resolve(t, n, f, 0))
			for _, x := range v[1:] {
				if _, ok := x.Value.(ast.Var); ok {
					out = append(out, r.resolve(x, n, f, 0))
				}
			}
			return true
		case ast.Var:
			out = append(out, r.resolve(t, n, f, 0))
		}
		return false
	}
	switch terms := f.expr.Terms.(type) {
	case []*ast.Term:
		for _, t := range terms[1:] {
			ast.WalkTerms(t, visit)
		}
	case *ast.Term:
		ast.WalkTerms(terms, visit)
	case *ast.Every:
		ast.WalkTerms(terms.Domain, visit)
	}
	return slices.DeleteFunc(out, func(o operand) bool { return o.path == "" })
}

// resolve finds the value of a term at the moment of failure and where it comes
// from, without evaluating anything.
func (r *report) resolve(t *ast.Term, n *queryNode, f *failure, depth int) operand {
	if depth > 8 {
		return operand{}
	}
	switch v := t.Value.(type) {
	case ast.Var:
		return r.resolveVar(v, n, f, depth)
	case ast.Ref:
		return r.resolveRef(v, n, f, depth)
	}
	if t.IsGround() {
		return operand{value: t.Value}
	}
	return operand{}
}

func (r *report) resolveVar(v ast.Var, n *queryNode, f *failure, depth int) operand {
	o := operand{value: f.vars[v]}
	if path, ok := r.pathOf(o.value); ok {
		return operand{value: o.value, path: path, input: true}
	}
	// A generated variable stands for a reference or call of the same body.
	for _, x := range bodyOf(n.node) {
		if x == f.expr || !x.IsCall() {
			continue
		}
		if !x.IsEquality() {
			ops := x.Operands()
			if len(ops) > 1 && ops[len(ops)-1].Equal(ast.NewTerm(v)) {
				of := r.resolve(ops[0], n, f, depth+1)
				return operand{value: o.value, path: fmt.Sprintf("%s(%s)", x.Operator(), of.path), input: of.input}
			}
			continue
		}
		for i := range 2 {
			if !x.Operand(i).Equal(ast.NewTerm(v)) {
				continue
			}
			if ref, ok := x.Operand(1 - i).Value.(ast.Ref); ok {
				from := r.resolveRef(ref, n, f, depth+1)
				if o.value == nil {
					o.value = from.value
				}
				return operand{value: o.value, path: from.path, input: from.input}
			}
		}
	}
	name := v
	if orig, ok := r.policy.compiler.RewrittenVars[v]; ok {
		name = orig
	}
	if !strings.HasPrefix(string(name), "__local") && !name.IsWildcard() {
		o.path = string(name)
		o.input = o.value != nil // an element of the request or of the policy; shown with redaction
	}
	return o
}

func (r *report) resolveRef(ref ast.Ref, n *queryNode, f *failure, depth int) operand {
	var o operand
	rest := ref[1:]
	switch {
	case ref[0].Equal(ast.InputRootDocument):
		o = operand{value: r.input.term.Value, input: true}
	case ref[0].Equal(ast.DefaultRootDocument):
		if len(ref) > 2 && ref[1].Equal(ast.StringTerm("agent_policy")) {
			name, _ := ref[2].Value.(ast.String)
			o = operand{value: r.policy.constants[string(name)], path: string(name)}
			rest = ref[3:]
		} else if len(ref) > 1 && ref[1].Equal(ast.StringTerm("pstate")) {
			o = operand{value: r.state, path: "pstate"}
			rest = ref[2:]
		}
	default:
		o = r.resolve(ref[0], n, f, depth+1)
	}
	if o.value == nil && o.path == "" {
		return operand{path: ref.String()}
	}
	for _, t := range rest {
		key := r.resolve(t, n, f, depth+1).value
		if key == nil {
			return operand{path: o.path + "[_]", input: o.input}
		}
		o.path = joinPath(o.path, key)
		if o.value != nil {
			o.value = element(o.value, key)
		}
	}
	return o
}

func element(v, key ast.Value) ast.Value {
	switch v := v.(type) {
	case ast.Object:
		if t := v.Get(ast.NewTerm(key)); t != nil {
			return t.Value
		}
	case *ast.Array:
		if t := v.Get(ast.NewTerm(key)); t != nil {
			return t.Value
		}
	case ast.Set:
		if v.Contains(ast.NewTerm(key)) {
			return key
		}
	}
	return nil
}

func bodyOf(n ast.Node) ast.Body {
	switch v := n.(type) {
	case *ast.Rule:
		return v.Body
	case ast.Body:
		return v
	}
	return nil
}

// pathOf finds where in the request a composite value sits: values keep their
// identity on the way through the evaluation.
func (r *report) pathOf(v ast.Value) (string, bool) {
	switch v.(type) {
	case ast.Object, *ast.Array:
		p, ok := r.paths[v]
		return p, ok
	}
	return "", false
}

func pointerPaths(root ast.Value) map[ast.Value]string {
	paths := map[ast.Value]string{}
	var walk func(path string, v ast.Value)
	walk = func(path string, v ast.Value) {
		switch v := v.(type) {
		case ast.Object:
			if v.Len() == 0 {
				return // empty values may be shared
			}
			paths[v] = path
			v.Foreach(func(k, x *ast.Term) { walk(joinPath(path, k.Value), x.Value) })
		case *ast.Array:
			if v.Len() == 0 {
				return
			}
			paths[v] = path
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", path, i), v.Elem(i).Value)
			}
		}
	}
	walk("", root)
	return paths
}

func joinPath(path string, key ast.Value) string {
	s, ok := key.(ast.String)
	switch {
	case !ok:
		return path + "[" + shorten(key.String(), 32) + "]"
	case !ruleName(string(s)):
		return path + "[" + shorten(fmt.Sprintf("%q", string(s)), 160) + "]"
	case path == "":
		return string(s)
	}
	return path + "." + string(s)
}
