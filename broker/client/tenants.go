package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"time"
)

// Quota bounds a tenant. Zero leaves a bound to the broker's configuration.
type Quota struct {
	Resources         int     `json:"resources,omitempty"`
	Bytes             int64   `json:"bytes,omitempty"`
	RequestsPerSecond float64 `json:"requests_per_second,omitempty"`
	ReferenceValues   int     `json:"reference_values,omitempty"`
	Policies          int     `json:"policies,omitempty"`
	Sessions          int     `json:"sessions,omitempty"`
}

// Tenant is a namespace of the broker with its own admins.
type Tenant struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Quota   Quota     `json:"quota"`
	Usage   Quota     `json:"usage"`
}

var tenantName = regexp.MustCompile(`\A[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?\z`)

func tenantPath(name string) (string, error) {
	if !tenantName.MatchString(name) {
		return "", fmt.Errorf("tenant name is %.128q, want letters, digits and inner '_', '-' or '.'", name)
	}
	return "/cloister/v1/tenants/" + name, nil
}

// tenantToken is the answer with a new admin token, which is told once.
type tenantToken struct {
	Name  string `json:"name"`
	Token string `json:"admin_token"`
}

func readToken(answer []byte, name string) (string, error) {
	var t tenantToken
	if err := json.Unmarshal(answer, &t); err != nil {
		return "", errors.New("reading the answer: it is not the JSON of a token") // the cause would quote it
	}
	if t.Name != "" && t.Name != name || t.Token == "" {
		return "", fmt.Errorf("the broker's answer is for tenant %.128q and has a token of %d bytes", t.Name, len(t.Token))
	}
	return t.Token, nil
}

// CreateTenant makes a tenant and returns the token of its first admin, which cannot be had again.
func (c *Client) CreateTenant(ctx context.Context, name string, q Quota) (token string, err error) {
	if _, err := tenantPath(name); err != nil {
		return "", err
	}
	body, err := json.Marshal(struct {
		Name  string `json:"name"`
		Quota Quota  `json:"quota"`
	}{name, q})
	if err != nil {
		return "", fmt.Errorf("encoding the request: %w", err)
	}
	answer, err := c.call(ctx, http.MethodPost, "/cloister/v1/tenants", "", body)
	if err == nil {
		token, err = readToken(answer, name)
	}
	if err != nil {
		return "", fmt.Errorf("making tenant %s: %w", name, err)
	}
	return token, nil
}

// Tenants lists the tenants.
func (c *Client) Tenants(ctx context.Context) ([]Tenant, error) {
	var list []Tenant
	if err := c.get(ctx, "/cloister/v1/tenants", "", &list); err != nil {
		return nil, fmt.Errorf("listing tenants: %w", err)
	}
	return list, nil
}

// SetTenantQuota replaces all bounds of a tenant. What it keeps already stays.
func (c *Client) SetTenantQuota(ctx context.Context, name string, q Quota) error {
	p, err := tenantPath(name)
	if err != nil {
		return err
	}
	if err := c.post(ctx, p+"/quota", q); err != nil {
		return fmt.Errorf("setting the quota of tenant %s: %w", name, err)
	}
	return nil
}

// DeleteTenant removes a tenant with all that it has.
func (c *Client) DeleteTenant(ctx context.Context, name string) error {
	p, err := tenantPath(name)
	if err != nil {
		return err
	}
	if _, err := c.call(ctx, http.MethodDelete, p, url.Values{"confirm": {name}}.Encode(), nil); err != nil {
		return fmt.Errorf("removing tenant %s: %w", name, err)
	}
	return nil
}

// NewTenantToken makes a new admin token of a tenant; the one it had ends.
func (c *Client) NewTenantToken(ctx context.Context, name string) (token string, err error) {
	p, err := tenantPath(name)
	if err != nil {
		return "", err
	}
	answer, err := c.call(ctx, http.MethodPost, p+"/token", "", nil)
	if err == nil {
		token, err = readToken(answer, name)
	}
	if err != nil {
		return "", fmt.Errorf("making an admin token of tenant %s: %w", name, err)
	}
	return token, nil
}
