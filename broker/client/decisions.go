package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
)

// Explain returns the verdict on a request and its grounds. The id is the one that every denial names.
func (c *Client) Explain(ctx context.Context, id string) (*decision.Record, error) {
	if !decision.ValidID(id) {
		return nil, fmt.Errorf("request id is %q, want 32 hex digits", id)
	}
	var rec decision.Record
	if err := c.get(ctx, "/cloister/v1/attestations/"+id, "", &rec); err != nil {
		return nil, fmt.Errorf("asking about request %s: %w", id, err)
	}
	return &rec, nil
}

// DryRun lets the broker appraise a record or saved evidence again; nothing comes of it.
func (c *Client) DryRun(ctx context.Context, r dryrun.Request) (*dryrun.Result, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	answer, err := c.call(ctx, http.MethodPost, "/cloister/v1/appraisals/dry-run", "", body)
	if err != nil {
		return nil, fmt.Errorf("asking for a dry run: %w", err)
	}
	var out dryrun.Result
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("asking for a dry run: reading the answer: %w", err)
	}
	return &out, nil
}
