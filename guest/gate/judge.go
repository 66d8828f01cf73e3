package gate

import (
	"context"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Judge is Allow for a request that was written down as the policy sees it: what encoding/json makes of it, with numbers
// as float64 or json.Number. It is for tools that replay requests.
func (e *Engine) Judge(ctx context.Context, rule string, request any) error {
	v, err := ast.InterfaceToValue(request)
	if err != nil {
		return &InternalError{Rule: rule, Err: fmt.Errorf("reading the request: %w", err)}
	}
	if err := e.acquire(ctx); err != nil {
		return &InternalError{Rule: rule, Err: err}
	}
	defer func() { <-e.lock }()
	_, err = e.decideLocked(ctx, rule, &input{term: ast.NewTerm(v), secrets: &secrets{}})
	return err
}

// State is a copy of the policy's state, data.pstate, as plain values.
func (e *Engine) State(ctx context.Context) (map[string]any, error) {
	if err := e.acquire(ctx); err != nil {
		return nil, err
	}
	defer func() { <-e.lock }()
	if e.open {
		return map[string]any{}, nil
	}
	v, err := e.policy.state(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := ast.JSON(v)
	if err != nil {
		return nil, fmt.Errorf("reading policy state: %w", err)
	}
	m, _ := plain.(map[string]any)
	return m, nil
}
