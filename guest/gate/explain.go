package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Limits of the second, traced evaluation.
const (
	maxEvents  = 400_000
	maxReasons = 3
)

// explain evaluates a refused rule again under a tracer and reports the failed
// expressions of the alternative that came furthest. It never fails: the least it
// says is that no rule allowed the request.
func (p *policy) explain(ctx context.Context, rule string, in *input) []string {
	tr := &tracer{queries: map[uint64]*queryNode{}, bodyVars: map[ast.Node][]ast.Var{}}
	_, err := p.evaluate(ctx, rule, in, func(q *topdown.Query) *topdown.Query {
		return q.WithQueryTracer(tr).WithIndexing(false).WithEarlyExit(false)
	})
	state, _ := p.state(ctx)
	r := &report{policy: p, input: in, state: state, paths: pointerPaths(in.term.Value)}
	r.collectSecrets()
	reasons := r.reasons(tr.entries(rule))
	if len(reasons) == 0 {
		reasons = []string{"no rule allows it"}
	}
	if err != nil {
		reasons = append(reasons, "explanation incomplete: "+err.Error())
	}
	return reasons
}

// queryNode is one rule body or nested query seen by the tracer.
type queryNode struct {
	rule      *ast.Rule // nil for a nested body
	node      ast.Node
	best      *failure
	frame     frame
	succeeded bool
	forward   *queryNode // the domain of an every: its bodies belong to this node
}

// frame is the expression that a query is evaluating now.
type frame struct {
	expr     *ast.Expr
	children []*queryNode
}

// failure is an expression that was not satisfied, with the values it had.
type failure struct {
	expr     *ast.Expr
	vars     map[ast.Var]ast.Value
	children []*queryNode
	others   int // further failures just as far
}

// tracer keeps, for each query, the failure that came furthest.
type tracer struct {
	queries  map[uint64]*queryNode
	order    []*queryNode
	bodyVars map[ast.Node][]ast.Var
	events   int
}

// Enabled implements topdown.QueryTracer; it ends tracing after maxEvents.
func (t *tracer) Enabled() bool { return t.events < maxEvents }

// Config implements topdown.QueryTracer.
func (t *tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (t *tracer) TraceEvent(e topdown.Event) {
	t.events++
	switch e.Op {
	case topdown.EnterOp:
		n := &queryNode{node: e.Node}
		n.rule, _ = e.Node.(*ast.Rule)
		t.queries[e.QueryID] = n
		t.order = append(t.order, n)
		parent := t.queries[e.ParentID]
		for parent != nil && parent.forward != nil {
			parent = parent.forward
		}
		if parent == nil || parent == n {
			return
		}
		if _, domain := e.Node.(*ast.Expr); domain {
			n.forward = parent
			return
		}
		parent.frame.children = append(parent.frame.children, n)
	case topdown.ExitOp:
		if n := t.queries[e.QueryID]; n != nil {
			n.succeeded = true
		}
	case topdown.EvalOp, topdown.RedoOp:
		if x, ok := e.Node.(*ast.Expr); ok {
			if n := t.queries[e.QueryID]; n != nil {
				n.frame = frame{expr: x}
			}
		}
	case topdown.FailOp:
		if x, ok := e.Node.(*ast.Expr); ok {
			if n := t.queries[e.QueryID]; n != nil {
				t.fail(n, x, &e)
			}
		}
	}
}

func (t *tracer) fail(n *queryNode, x *ast.Expr, e *topdown.Event) {
	f := &failure{expr: x}
	if n.frame.expr == x {
		f.children = n.frame.children
	}
	if n.best != nil {
		switch c := compareFailures(f, n.best); {
		case c < 0:
			return
		case c == 0:
			n.best.others++
			return
		}
	}
	f.vars = map[ast.Var]ast.Value{}
	for _, v := range t.vars(n.node) {
		if val := e.Plug(ast.NewTerm(v)).Value; val.IsGround() {
			f.vars[v] = val
		}
	}
	n.best = f
}

// vars lists the variables of a rule or body, once per node.
func (t *tracer) vars(n ast.Node) []ast.Var {
	var key ast.Node
	switch v := n.(type) {
	case *ast.Rule:
		key = v
	case ast.Body:
		if len(v) == 0 {
			return nil
		}
		key = v[0]
	case *ast.Expr:
		key = v
	default:
		return nil
	}
	if vs, ok := t.bodyVars[key]; ok {
		return vs
	}
	set := ast.NewVarSet()
	ast.WalkVars(n, func(v ast.Var) bool {
		if v != "input" && v != "data" {
			set.Add(v)
		}
		return false
	})
	vs := set.Sorted()
	t.bodyVars[key] = vs
	return vs
}

// compareFailures orders failures by how far the evaluation came.
func compareFailures(a, b *failure) int {
	if a.expr.Index != b.expr.Index {
		return a.expr.Index - b.expr.Index
	}
	x, y := bestChild(a), bestChild(b)
	switch {
	case x == nil && y == nil:
		return 0
	case x == nil:
		return -1
	case y == nil:
		return 1
	}
	return compareFailures(x.best, y.best)
}

// bestChild is the nested query that came furthest before f failed.
func bestChild(f *failure) *queryNode {
	var best *queryNode
	for _, c := range f.children {
		if c.succeeded || c.best == nil {
			continue
		}
		if best == nil || compareFailures(c.best, best.best) > 0 {
			best = c
		}
	}
	return best
}

// entries are the failed alternatives of the asked rule, closest first.
func (t *tracer) entries(rule string) []*queryNode {
	var out []*queryNode
	for _, n := range t.order {
		if n.rule != nil && !n.rule.Default && n.best != nil && !n.succeeded && ruleIs(n.rule, rule) {
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b *queryNode) int { return compareFailures(b.best, a.best) })
	return out[:min(len(out), maxReasons)]
}

func ruleIs(r *ast.Rule, name string) bool {
	ref := r.Head.Reference
	if len(ref) == 0 {
		return false
	}
	switch v := ref[len(ref)-1].Value.(type) {
	case ast.Var:
		return string(v) == name
	case ast.String:
		return string(v) == name
	}
	return false
}

// report turns failures into text.
type report struct {
	policy *policy
	input  *input
	state  ast.Value
	paths  map[ast.Value]string
}

func (r *report) reasons(entries []*queryNode) []string {
	var found []reason
	for _, n := range entries {
		more := r.descend(n, "")
		if len(found) > 0 { // rules for something else fail for want of what they are about: that tells nothing
			more = slices.DeleteFunc(more, func(x reason) bool { return x.undefined })
		}
		found = append(found, more...)
		if len(found) >= maxReasons {
			break
		}
	}
	var out []string
	subject := ""
	for _, x := range found[:min(len(found), maxReasons)] {
		text := x.text
		if x.subject != "" && x.subject != subject {
			text = x.subject + ": " + text
		}
		subject = x.subject
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// reason is one failed check and the container of the policy it is about.
type reason struct {
	subject, text string
	undefined     bool // it failed for want of a value
}

// descend follows the failure of n into the rule or function that caused it.
// The alternative that came furthest comes first, then others that tell something.
func (r *report) descend(n *queryNode, subject string) []reason {
	f := n.best
	if s := r.subjectOf(f.vars); s != "" {
		subject = s
	}
	if child := bestChild(f); child != nil && !f.expr.Negated {
		out := r.descend(child, subject)
		for _, c := range f.children {
			if c != child && c.best != nil && !c.succeeded && c.node != child.node && telling(c, child) {
				out = append(out, slices.DeleteFunc(r.descend(c, subject), func(x reason) bool { return x.undefined })...)
			}
		}
		return out[:min(len(out), maxReasons)]
	}
	return []reason{{subject, r.leaf(n, f), r.undefined(n, f)}}
}

// telling says whether an alternative is worth a word beside the one that came furthest: it came as far, or it has a single
// check and none that could have ruled it out before.
func telling(c, furthest *queryNode) bool {
	return c.best.expr.Index >= furthest.best.expr.Index || len(bodyOf(c.node)) == 1
}

// subjectOf names the container of the policy that a rule was looking at.
func (r *report) subjectOf(vars map[ast.Var]ast.Value) string {
	for _, v := range vars {
		o, ok := v.(ast.Object)
		if !ok {
			continue
		}
		if _, request := r.pathOf(o); request {
			continue
		}
		oci, ok := member(o, "OCI").(ast.Object)
		if !ok {
			continue
		}
		if name, ok := member(o, "name").(ast.String); ok && name != "" {
			return fmt.Sprintf("closest is container %q of the policy", shorten(string(name), 64))
		}
		anno, _ := member(oci, "Annotations").(ast.Object)
		if anno == nil {
			continue
		}
		if name, ok := member(anno, "io.kubernetes.cri.container-name").(ast.String); ok {
			return fmt.Sprintf("closest is container %q of the policy", shorten(string(name), 64))
		}
		if kind, ok := member(anno, "io.kubernetes.cri.container-type").(ast.String); ok && kind == "sandbox" {
			return "closest is the sandbox container of the policy"
		}
	}
	return ""
}

// undefined says whether an operand has no value.
func (r *report) undefined(n *queryNode, f *failure) bool {
	return slices.ContainsFunc(r.operands(n, f), func(o operand) bool { return o.value == nil })
}

// source is the policy line of an expression.
func (r *report) source(x *ast.Expr) string {
	if x.Location == nil {
		return ""
	}
	line := strings.TrimSpace(string(x.Location.Text))
	if i := strings.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	if line == "" {
		return fmt.Sprintf("policy line %d", x.Location.Row)
	}
	return fmt.Sprintf("policy line %d: %s", x.Location.Row, shorten(r.input.secrets.redactSource(line), 120))
}
