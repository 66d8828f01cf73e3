package resource

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
)

// PolicyID is the id of the one resource policy.
const PolicyID = "resource-policy"

// PluginName is the plugin that policies know resources by.
const PluginName = "resource"

// PolicyNamespace is where the resource policy is stored.
const PolicyNamespace = store.KBS

//go:embed default.rego
var defaultPolicy string

type policies interface {
	Get(ctx context.Context, id string) (*rego.Policy, error)
	PutDefault(ctx context.Context, id, text string) error
}

// Request is what the resource policy decides about.
type Request struct {
	Plugin string
	Path   []string
	Query  map[string]string
	// Claims are those of the verified attestation token.
	Claims map[string]any
}

// Decision is the answer of the policy.
type Decision struct {
	Allow    bool
	Policy   string
	Findings []rego.Finding
}

// Gate decides who gets a resource.
type Gate struct{ policies policies }

// NewGate makes a Gate and installs the default policy where there is none.
func NewGate(ctx context.Context, p policies) (*Gate, error) {
	if err := p.PutDefault(ctx, PolicyID, defaultPolicy); err != nil {
		return nil, err
	}
	return &Gate{policies: p}, nil
}

// Decide evaluates the resource policy. Only the value true allows.
func (g *Gate) Decide(ctx context.Context, r Request) (*Decision, error) {
	policy, err := g.policies.Get(ctx, PolicyID)
	if err != nil {
		return nil, err
	}
	path := make([]any, 0, len(r.Path))
	for _, s := range r.Path {
		path = append(path, s)
	}
	query := map[string]any{}
	for k, v := range r.Query {
		query[k] = v
	}
	evaluation, err := policy.Begin(rego.Document{
		Input: r.Claims, Data: map[string]any{"plugin": r.Plugin, "resource-path": path, "query": query},
	})
	if err != nil {
		return nil, err
	}
	value, _, err := evaluation.Eval(ctx, "allow")
	if err != nil {
		return nil, err
	}
	d := &Decision{Policy: policy.ID()}
	if allow, ok := value.(bool); ok && allow {
		d.Allow = true
		return d, nil
	}
	if d.Findings, err = evaluation.Explain(ctx, "allow"); err != nil {
		return nil, fmt.Errorf("resource policy says no: %w", err)
	}
	return d, nil
}
