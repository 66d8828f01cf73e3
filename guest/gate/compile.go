package gate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Limits of a policy text.
const (
	maxPolicyBytes = 16 << 20
	maxLineBytes   = 64 << 10
	maxLines       = 200_000
)

const (
	packagePath      = "data.agent_policy"
	allowFailingRule = "AllowRequestsFailingPolicy"
	undoFailedRule   = "UndoFailedRequests"
)

// policy is one compiled text with its state.
type policy struct {
	compiler  *ast.Compiler
	store     *stateStore
	memory    *memory
	queries   map[string]*query // per rule
	constants map[string]ast.Value
	secrets   *secrets // values of env and args in the policy, filled on the first denial
	text      string   // as it was given, without fragments; kept only if the policy may get some
	fragments []loadedFragment

	insecureAllowFailing bool
	undoFailed           bool
	writers              *writers
}

// query is the question for one rule.
type query struct {
	body       ast.Body
	readsBytes bool // the rule may look at byte fields of the request
}

// compile parses and compiles text: first as Rego v0 (which upstream policies
// are, with `import rego.v1` or future keywords), then as v1. The type checker is
// skipped because upstream's engine has none and its policies rely on that.
func compile(text string) (*policy, error) {
	if err := checkText(text); err != nil {
		return nil, err
	}
	p, err := compileAs(text, ast.RegoV0)
	if err == nil {
		return p, nil
	}
	p, err1 := compileAs(text, ast.RegoV1)
	if err1 == nil {
		return p, nil
	}
	if strings.Contains(text, "import rego.v1") || strings.Contains(text, "import future.keywords") {
		return nil, err
	}
	return nil, fmt.Errorf("as Rego v0: %w; as Rego v1: %w", err, err1)
}

func checkText(text string) error {
	if len(text) > maxPolicyBytes {
		return fmt.Errorf("policy has %d bytes, the limit is %d", len(text), maxPolicyBytes)
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		if len(line) > maxLineBytes {
			return fmt.Errorf("policy line %d has %d bytes, the limit is %d", n, len(line), maxLineBytes)
		}
		if n > maxLines {
			return fmt.Errorf("policy has more than %d lines", maxLines)
		}
	}
	return nil
}

func compileAs(text string, version ast.RegoVersion) (*policy, error) {
	rules, data := splitData(text)
	options := ast.ParserOptions{RegoVersion: version, Capabilities: capabilities(version)}
	module, err := ast.ParseModuleWithOpts("policy", rules, options)
	if err != nil && data != nil {
		data = nil
		module, err = ast.ParseModuleWithOpts("policy", text, options)
	}
	if err != nil {
		return nil, fmt.Errorf("parsing policy: %w", err)
	}
	if module == nil {
		return nil, fmt.Errorf("parsing policy: the text is empty")
	}
	if got := module.Package.Path.String(); got != packagePath {
		return nil, fmt.Errorf("policy package is %s, expected agent_policy", strings.TrimPrefix(got, "data."))
	}
	module.Comments = nil // nothing reads them
	constants := takeConstants(module, data)
	c, err := compileModule(module, version, constants)
	if err != nil {
		return nil, err
	}
	if c, err = fold(c, module, version, constants); err != nil {
		return nil, err
	}
	p := &policy{compiler: c, queries: map[string]*query{}, constants: constants, store: newStore(), writers: &writers{last: map[string]uint64{}}}
	if wantsFragments(constants) {
		p.text = text
	}
	return p, nil
}

// compileModule compiles a module whose constants were taken out, and puts them in again.
func compileModule(module *ast.Module, version ast.RegoVersion, constants map[string]ast.Value) (*ast.Compiler, error) {
	c := ast.NewCompiler().
		WithCapabilities(capabilities(version)).
		WithDefaultRegoVersion(version).
		WithEnablePrintStatements(true).
		WithSkipStages(ast.StageCheckTypes)
	c.Compile(map[string]*ast.Module{"policy": module})
	if c.Failed() {
		return nil, fmt.Errorf("compiling policy: %w", c.Errors)
	}
	putConstants(c, constants)
	return c, nil
}

// query returns the compiled query of a rule. Rule names come from message
// descriptors, so there are few; the pattern is checked all the same.
func (p *policy) query(rule string) (*query, error) {
	if q, ok := p.queries[rule]; ok {
		return q, nil
	}
	if !ruleName(rule) {
		return nil, fmt.Errorf("%.64q is not a rule name", rule)
	}
	ref := append(ast.MustParseRef(packagePath), ast.StringTerm(rule))
	body := ast.NewBody(ast.Equality.Expr(ast.VarTerm(resultVar), ast.NewTerm(ref)))
	compiled, err := p.compiler.QueryCompiler().Compile(body)
	if err != nil {
		return nil, fmt.Errorf("compiling query for %s: %w", rule, err)
	}
	q := &query{body: compiled, readsBytes: p.readsBytes(ref)}
	p.queries[rule] = q
	return q, nil
}

func ruleName(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	})
}

// byteFields are the request members that carry bytes.
var byteFields = []string{"data"}

// readsBytes reports whether a rule, or a rule that it depends on, may look at a
// byte field of the request: it names one, or uses input as a whole or with a
// computed key.
func (p *policy) readsBytes(ref ast.Ref) bool {
	seen := map[*ast.Rule]bool{}
	var visit func(r *ast.Rule) bool
	visit = func(r *ast.Rule) bool {
		if seen[r] {
			return false
		}
		seen[r] = true
		if namesBytes(r) {
			return true
		}
		for dep := range p.compiler.Graph.Dependencies(r) {
			if d, ok := dep.(*ast.Rule); ok && visit(d) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(p.compiler.GetRules(ref), visit)
}

func namesBytes(node any) bool {
	found := false
	ast.WalkTerms(node, func(t *ast.Term) bool {
		switch v := t.Value.(type) {
		case ast.Ref:
			found = found || refNamesBytes(v)
			return true
		case ast.Var:
			found = found || v.Equal(ast.InputRootDocument.Value)
		}
		return found
	})
	return found
}

func refNamesBytes(ref ast.Ref) bool {
	input := ref[0].Equal(ast.InputRootDocument)
	if input && len(ref) == 1 {
		return true
	}
	for i, x := range ref[1:] {
		s, text := x.Value.(ast.String)
		switch {
		case text && slices.Contains(byteFields, string(s)), input && i == 0 && !text, !text && namesBytes(x):
			return true
		}
	}
	return false
}
