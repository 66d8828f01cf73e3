package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/print"
)

const resultVar = "result"

// decision is a usable answer of the policy.
type decision struct {
	allowed bool
	ops     []operation
}

// decide evaluates one rule. errUndefined means that there is no answer.
func (p *policy) decide(ctx context.Context, rule string, in *input, prints print.Hook) (decision, error) {
	v, err := p.evaluate(ctx, rule, in, func(q *topdown.Query) *topdown.Query {
		if prints != nil {
			q = q.WithPrintHook(prints)
		}
		return q
	})
	if err != nil {
		return decision{}, err
	}
	return readDecision(v)
}

// evaluate runs the query of a rule, cancelled with ctx.
func (p *policy) evaluate(ctx context.Context, rule string, in *input, tune func(*topdown.Query) *topdown.Query) (ast.Value, error) {
	question, err := p.query(rule)
	if err != nil {
		return nil, err
	}
	result, err := p.run(ctx, question.body, in, tune)
	if err != nil {
		return nil, err
	}
	t, ok := result[resultVar]
	if !ok {
		return nil, errUndefined
	}
	return t.Value, nil
}

// ending cancels an evaluation with its context.
type ending struct{ ctx context.Context }

// Cancel implements topdown.Cancel; contexts are cancelled by their owners.
func (ending) Cancel() {}

// Cancelled implements topdown.Cancel.
func (e ending) Cancelled() bool { return e.ctx.Err() != nil }

// run evaluates a compiled query that has one answer.
func (p *policy) run(ctx context.Context, body ast.Body, in *input, tune func(*topdown.Query) *topdown.Query) (topdown.QueryResult, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("evaluating policy: %w", ctx.Err())
	}
	if p.memory == nil {
		p.memory = newMemory()
	}
	defer p.memory.forget()
	q := topdown.NewQuery(body).
		WithCompiler(p.compiler).
		WithStore(p.store).
		WithTransaction(reading{}).
		WithBaseCache(p.store).
		WithVirtualCache(p.memory).
		WithMetrics(metrics.NoOp()).
		WithInput(in.term).
		WithCancel(ending{ctx})
	results, err := tune(q).Run(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("evaluating policy: %w", ctx.Err())
	case topdown.IsCancel(err):
		return nil, errors.New("evaluating policy: cancelled")
	case err != nil:
		return nil, fmt.Errorf("evaluating policy: %w", err)
	case len(results) == 0:
		return nil, errUndefined
	case len(results) > 1:
		return nil, fmt.Errorf("policy gives %d answers, expected one", len(results))
	}
	return results[0], nil
}

func readDecision(v ast.Value) (decision, error) {
	switch v := v.(type) {
	case ast.Boolean:
		return decision{allowed: bool(v)}, nil
	case ast.Object:
		allowed, ok := member(v, "allowed").(ast.Boolean)
		if !ok {
			return decision{}, errors.New("policy answer has no boolean member allowed")
		}
		d := decision{allowed: bool(allowed)}
		if !d.allowed {
			return d, nil
		}
		var err error
		d.ops, err = readOperations(member(v, "ops"))
		return d, err
	}
	return decision{}, fmt.Errorf("policy answer is of type %s, expected boolean or object", ast.ValueName(v))
}

// member returns a member of an object, or nil.
func member(o ast.Object, key string) ast.Value {
	if t := o.Get(ast.InternedTerm(key)); t != nil {
		return t.Value
	}
	return nil
}

// state reads data.pstate, for tests and the explanation of denials.
func (p *policy) state(ctx context.Context) (ast.Value, error) {
	v, err := storage.ReadOne(ctx, p.store, storage.Path{"pstate"})
	if err != nil {
		return nil, fmt.Errorf("reading policy state: %w", err)
	}
	if av, ok := v.(ast.Value); ok {
		return av, nil
	}
	return ast.InterfaceToValue(v)
}

// printBuffer gathers print() output up to a limit.
type printBuffer struct {
	b strings.Builder
}

const maxPrint = 1024

// Print implements print.Hook.
func (w *printBuffer) Print(_ print.Context, msg string) error {
	if room := maxPrint - w.b.Len(); room > 0 {
		if w.b.Len() > 0 {
			w.b.WriteByte(' ')
			room--
		}
		w.b.WriteString(shorten(msg, max(room, len("…"))))
	}
	return nil
}

// text returns what was printed without the values that must not be shown.
func (w *printBuffer) text(s *secrets) string { return s.redactText(w.b.String()) }
