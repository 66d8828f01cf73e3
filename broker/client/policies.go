package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
)

// PolicyKind is what a policy decides about.
type PolicyKind string

// The kinds of policies. Those of attestation are named by id and class, such as "default_cpu"; for resources there is one.
const (
	AttestationPolicy PolicyKind = "attestation"
	ResourcePolicy    PolicyKind = "resource"
)

// Policies returns the ids of all policies of a kind.
func (c *Client) Policies(ctx context.Context, kind PolicyKind) ([]string, error) {
	var ids []string
	if err := c.get(ctx, "/kbs/v0/"+string(kind)+"-policy", "", &ids); err != nil {
		return nil, fmt.Errorf("listing %s policies: %w", kind, err)
	}
	return ids, nil
}

// Policy returns the text of a policy.
func (c *Client) Policy(ctx context.Context, kind PolicyKind, id string) (string, error) {
	text, err := c.call(ctx, http.MethodGet, "/kbs/v0/"+string(kind)+"-policy/"+url.PathEscape(id), "", nil)
	if err != nil {
		return "", fmt.Errorf("reading %s policy %s: %w", kind, id, err)
	}
	return string(text), nil
}

// SetAttestationPolicy sets the policy of a device class, for example "default_cpu".
func (c *Client) SetAttestationPolicy(ctx context.Context, id, text string) error {
	err := c.post(ctx, "/kbs/v0/attestation-policy", map[string]string{
		"type": "rego", "policy_id": id, "policy": base64.RawURLEncoding.EncodeToString([]byte(text)),
	})
	if err != nil {
		return fmt.Errorf("setting attestation policy %s: %w", id, err)
	}
	return nil
}

// SetResourcePolicy sets the policy that decides who gets a resource.
func (c *Client) SetResourcePolicy(ctx context.Context, text string) error {
	err := c.post(ctx, "/kbs/v0/resource-policy", map[string]string{
		"policy": base64.RawURLEncoding.EncodeToString([]byte(text)),
	})
	if err != nil {
		return fmt.Errorf("setting resource policy: %w", err)
	}
	return nil
}
