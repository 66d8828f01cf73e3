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
	seen map[string]query
}

// maxQueries bounds what is remembered of a policy. An explanation asks about as many queries as a policy has expressions, and a few
// more when other evidence gets further.
const maxQueries = 4096

// query compiles a query, or remembers it. Queries of the same text are the same query.
func (p *Policy) query(body ast.Body) (query, error) {
	text := body.String()
	p.queries.mu.Lock()
	q, ok := p.queries.seen[text]
	p.queries.mu.Unlock()
	if ok {
		return q, q.err
	}
	q.compiler = p.compiler.QueryCompiler().WithContext(
		ast.NewQueryContext().WithPackage(p.module.Package).WithImports(p.module.Imports))
	var err error
	if q.body, err = q.compiler.Compile(body.Copy()); err != nil {
		q.err = fmt.Errorf("%w: %w", errCompile, err)
	}
	p.queries.mu.Lock()
	defer p.queries.mu.Unlock()
	if p.queries.seen == nil {
		p.queries.seen = map[string]query{}
	}
	if len(p.queries.seen) < maxQueries {
		p.queries.seen[text] = q
	}
	return q, q.err
}
