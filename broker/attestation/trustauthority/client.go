package trustauthority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/grpcdial"
	"github.com/cloister/cloister/broker/keyset"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/span"
	"github.com/cloister/cloister/broker/token"
)

const (
	userAgent = "cloister-broker"
	keysEvery = 10 * time.Second
)

// Options is what a Client needs besides its configuration.
type Options struct {
	Now func() time.Time
	Log *slog.Logger
}

// Client is Intel Trust Authority. It has the methods of attestation.Service that a server uses.
type Client struct {
	cfg   Config
	http  *http.Client
	trust *token.Trust
	keys  *keyset.Refresher
	now   func() time.Time
}

// Open makes a Client. Files of the configuration must be readable; the service need not be there yet.
func Open(ctx context.Context, c Config, o Options) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	if _, err := grpcdial.Secret(c.APIKeyFile); err != nil {
		return nil, fmt.Errorf("api_key_file: %w", err)
	}
	h, err := client(c)
	if err != nil {
		return nil, err
	}
	// Keys may be redirected to, as they carry no secret; keyset keeps that within HTTPS.
	set, err := keyset.Open(ctx, &http.Client{Timeout: 10 * time.Second, Transport: h.Transport}, keyset.Source{JWKSet: c.JWKSet})
	switch {
	case err != nil && !strings.HasPrefix(c.JWKSet, "https://"):
		return nil, fmt.Errorf("jwk_set: %w", err)
	case err != nil:
		o.Log.WarnContext(ctx, "the keys of Intel Trust Authority cannot be read yet", "error", err, "hint", "tokens are refused until they can")
	}
	return &Client{
		cfg: c, http: h, now: o.Now, keys: keyset.NewRefresher(set, keysEvery, o.Now),
		trust: &token.Trust{Keys: set, Issuers: c.Issuers, Now: o.Now},
	}, nil
}

// Close ends idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Trust is what tokens of the service are checked with, also when a guest brings one.
func (c *Client) Trust() *token.Trust { return c.trust }

// Evaluate has the service verify all items. The policy is not looked at: the service has policies of its own, policy_ids. An error
// wraps outage.ErrUnavailable when the service could not be asked; otherwise it refused the evidence, or its answer does not hold.
func (c *Client) Evaluate(ctx context.Context, id, _ string, items []attestation.Item) (*attestation.Verdict, error) {
	r, err := c.request(items)
	if err != nil {
		return nil, err
	}
	path := pathAttest
	if r.azure {
		path = pathAzure
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.cfg.TimeoutMS)*time.Millisecond)
	defer cancel()
	asking, end := span.Start(ctx, span.Verify, span.Count(len(items)))
	compact, err := c.post(asking, path, r.body)
	end(err)
	if err != nil {
		return nil, err
	}
	claims, err := c.verify(ctx, compact)
	if err != nil {
		return nil, fmt.Errorf("token of Intel Trust Authority: %w", err)
	}
	rec, err := c.record(id, claims, r)
	if err != nil {
		return nil, fmt.Errorf("token of Intel Trust Authority: %w", err)
	}
	return &attestation.Verdict{Token: compact, Record: *rec}, nil
}

// verify checks a token. Keys that are not known are fetched: the service changes them from time to time.
func (c *Client) verify(ctx context.Context, compact string) (map[string]any, error) {
	claims, err := c.trust.Verify(compact)
	if err == nil {
		return claims, nil
	}
	fetched := c.keys.Refresh(ctx)
	claims, err = c.trust.Verify(compact)
	if err != nil && fetched != nil {
		// The key may be among those that cannot be fetched now.
		return nil, fmt.Errorf("%w: fetching its keys: %w; %w", outage.ErrUnavailable, fetched, err)
	}
	return claims, err
}

// ErrUnsupported is what changes of policies and reference values are answered with.
var ErrUnsupported = fmt.Errorf("%w: policies and reference values are kept at Intel Trust Authority; hint: change them in its portal", errors.ErrUnsupported)

// Policies stands for the policies of the service, which are not this broker's to change.
type Policies struct{}

// Put refuses.
func (Policies) Put(context.Context, string, string) error { return ErrUnsupported }

// Text refuses.
func (Policies) Text(context.Context, string) (string, error) { return "", ErrUnsupported }

// IDs refuses.
func (Policies) IDs(context.Context) ([]string, error) { return nil, ErrUnsupported }
