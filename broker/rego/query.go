package rego

import (
	"errors"
	"fmt"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// policyRef is data.policy, the package of every policy.
func policyRef() ast.Ref { return ast.Ref{ast.DefaultRootDocument, ast.StringTerm("policy")} }

// errCompile marks a query that does not compile on its own, for example for a variable that nothing binds.
var errCompile = errors.New("query does not compile")

// query is a query that is ready to be evaluated, any number of times at once.
type query struct {
	body     ast.Body
	compiler ast.QueryCompiler
	err      error
}

// queries remembers the queries of a policy: compiling one costs far more than evaluating it, and every handshake asks the same.
type queries struct {
	mu   sync.Mutex
	seen map[queryKey]query
}

// queryKey names a query of a policy: the value of a rule, or an expression of the module behind those before it that hold.
type queryKey struct {
	expr *ast.Expr
	// text is the name of the rule when there is no expression, else the places of those that hold, in the body.
	text string
}

// maxQueries bounds what is remembered of a policy. An explanation asks about as many queries as a policy has expressions, and a few
// more when other evidence gets further.
const maxQueries = 4096

// query returns the compiled query of a key, which body makes when it is not known.
func (p *Policy) query(key queryKey, body func() ast.Body) (query, error) {
	p.queries.mu.Lock()
	q, ok := p.queries.seen[key]
	p.queries.mu.Unlock()
	if ok {
		return q, q.err
	}
	q.compiler = p.compiler.QueryCompiler().WithContext(
		ast.NewQueryContext().WithPackage(p.module.Package).WithImports(p.module.Imports))
	var err error
	if q.body, err = q.compiler.Compile(body().Copy()); err != nil {
		q.err = fmt.Errorf("%w: %w", errCompile, err)
	}
	p.queries.mu.Lock()
	defer p.queries.mu.Unlock()
	if p.queries.seen == nil {
		p.queries.seen = map[queryKey]query{}
	}
	if len(p.queries.seen) < maxQueries {
		p.queries.seen[key] = q
	}
	return q, q.err
}
