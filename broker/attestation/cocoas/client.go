package cocoas

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/grpcdial"
	"github.com/cloister/cloister/broker/keyset"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/refstore/remote"
	"github.com/cloister/cloister/broker/span"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/internal/smallfile"
	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/kbs"
)

const (
	maxNonce    = 256 << 10 // a challenge of Secure Execution for many hosts
	keysTimeout = 10 * time.Second
	keysEvery   = 10 * time.Second
	valuesCache = 5 * time.Second
)

// Options is what a Client needs besides its configuration.
type Options struct {
	Now func() time.Time
	Log *slog.Logger
}

// Client is an attestation service elsewhere. It has the methods of attestation.Service that a server uses.
type Client struct {
	cfg   Config
	pool  *grpcdial.Pool
	as    as.AttestationServiceClient
	trust *token.Trust
	keys  *keyset.Refresher // nil without key sets
	now   func() time.Time
}

// Open makes a Client. Files of the configuration must be readable; the service and its addresses need not be there yet.
func Open(ctx context.Context, c Config, o Options) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	trust := &token.Trust{InsecureHeaderJWK: c.InsecureHeaderJWK, Issuers: []string{c.issuer()}, Now: o.Now}
	var err error
	if trust.Roots, err = smallfile.Roots(c.TokenCertificates...); err != nil {
		return nil, fmt.Errorf("token_certificates: %w", err)
	}
	var keys *keyset.Refresher
	if len(c.JWKSets) > 0 {
		if trust.Keys, err = openKeys(ctx, c, o.Log); err != nil {
			return nil, fmt.Errorf("jwk_sets: %w", err)
		}
		keys = keyset.NewRefresher(trust.Keys, keysEvery, o.Now)
	}
	pool, err := grpcdial.Open(c.Config)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: c, pool: pool, as: as.NewAttestationServiceClient(pool), trust: trust, keys: keys, now: o.Now}, nil
}

// openKeys reads the key sets. Files must be there; addresses are tried, and again when a token comes.
func openKeys(ctx context.Context, c Config, log *slog.Logger) (*keyset.Set, error) {
	conf, err := c.ClientTLS()
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: keysTimeout, Transport: &http.Transport{
		TLSClientConfig: conf, TLSHandshakeTimeout: keysTimeout, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}}
	var all []keyset.Source
	for _, s := range c.JWKSets {
		src := keyset.Source{JWKSet: s}
		all = append(all, src)
		if strings.HasPrefix(s, "https://") {
			continue
		}
		if _, err := keyset.Open(ctx, client, src); err != nil {
			return nil, err
		}
	}
	set, err := keyset.Open(ctx, client, all...)
	if err != nil {
		log.WarnContext(ctx, "the keys of the attestation service cannot be read yet", "error", err, "hint", "tokens are refused until they can")
	}
	return set, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.pool.Close() }

// Check asks the service whether it is there.
func (c *Client) Check(ctx context.Context) error { return c.pool.Check(ctx) }

// Trust is what tokens of the service are checked with, also when a guest brings one.
func (c *Client) Trust() *token.Trust { return c.trust }

// References are the reference values of the service, which it forwards to.
func (c *Client) References() *remote.Client { return remote.On(c.pool, valuesCache, c.now) }

var teeName = regexp.MustCompile(`\A[a-z][a-z0-9-]{0,31}\z`)

// Challenge asks the service what it has to say before there is evidence. Upstream's has nothing but for Secure Execution, and is
// not asked for anything else.
func (c *Client) Challenge(ctx context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error) {
	if !teeName.MatchString(tee) {
		return nil, fmt.Errorf("tee is %.64q, want a name of small letters, digits and '-'", tee)
	}
	if tee != "se" {
		return &verifier.Challenge{}, nil
	}
	p, err := kbs.Request{ExtraParams: params}.Params()
	if err != nil {
		return nil, err
	}
	const hash = "sha512"
	out := &verifier.Challenge{Hash: hash}
	if len(p.SupportedHashAlgorithms) > 0 {
		if !slices.ContainsFunc(p.SupportedHashAlgorithms, func(name string) bool { return strings.EqualFold(name, hash) }) {
			return nil, fmt.Errorf("the guest supports report data of %q, Secure Execution needs %s", p.SupportedHashAlgorithms, hash)
		}
		out.Params = &kbs.ChallengeParams{SelectedHashAlgorithm: hash}
	}
	text := string(params)
	if text == "" {
		text = `""`
	}
	answer, err := c.as.GetAttestationChallenge(ctx, &as.ChallengeRequest{Inner: map[string]string{"tee": tee, "tee_params": text}})
	if err != nil {
		return nil, fmt.Errorf("asking the attestation service for a challenge: %w", err)
	}
	out.Nonce = answer.GetAttestationChallenge()
	if n := len(out.Nonce); n == 0 || n > maxNonce || !json.Valid([]byte(out.Nonce)) {
		return nil, fmt.Errorf("the attestation service gave a challenge of %d bytes, want JSON of at most %d", n, maxNonce)
	}
	return out, nil
}

// Evaluate has the service verify all items by a policy. The id becomes that of the record. An error wraps outage.ErrUnavailable when
// the service could not be asked; otherwise it refused the evidence, or its answer does not hold.
func (c *Client) Evaluate(ctx context.Context, id, policy string, items []attestation.Item) (*attestation.Verdict, error) {
	if len(items) == 0 {
		return nil, errors.New("there is no evidence to verify")
	}
	req := &as.AttestationRequest{PolicyIds: []string{policy}}
	for i, it := range items {
		one, err := request(it)
		if err != nil {
			return nil, fmt.Errorf("evidence %d (%.32s): %w", i+1, it.TEE, err)
		}
		req.VerificationRequests = append(req.VerificationRequests, one)
	}
	asking, end := span.Start(ctx, span.Verify, span.Count(len(items)))
	answer, err := c.as.AttestationEvaluate(asking, req)
	end(err)
	if err != nil {
		return nil, fmt.Errorf("attestation service: %w", err)
	}
	compact := answer.GetAttestationToken()
	claims, err := c.verify(ctx, compact)
	if err != nil {
		return nil, fmt.Errorf("token of the attestation service at %s: %w", c.pool.Address(), err)
	}
	rec, err := c.record(id, claims, items)
	if err != nil {
		return nil, fmt.Errorf("token of the attestation service at %s: %w", c.pool.Address(), err)
	}
	return &attestation.Verdict{Token: compact, Record: *rec}, nil
}

// verify checks a token. Keys that are not known are fetched: the service may have changed them.
func (c *Client) verify(ctx context.Context, compact string) (map[string]any, error) {
	claims, err := c.trust.Verify(compact)
	if err == nil || c.keys == nil {
		return claims, err
	}
	fetched := c.keys.Refresh(ctx)
	claims, err = c.trust.Verify(compact)
	if err != nil && fetched != nil {
		// The key may be among those that cannot be fetched now.
		return nil, fmt.Errorf("%w: fetching its keys: %w; %w", outage.ErrUnavailable, fetched, err)
	}
	return claims, err
}

// SetAttestationPolicy stores a policy at the service, with the token of admin_token_file.
func (c *Client) SetAttestationPolicy(ctx context.Context, id, text string) error {
	ctx, err := c.pool.AsAdmin(ctx)
	if err != nil {
		return err
	}
	_, err = c.as.SetAttestationPolicy(ctx, &as.SetPolicyRequest{PolicyId: id, Policy: base64.RawURLEncoding.EncodeToString([]byte(text))})
	if err != nil {
		return fmt.Errorf("setting policy %.64q at the attestation service: %w", id, err)
	}
	return nil
}

// Policies is the service as a set of policies, as servers use one.
type Policies struct{ Client *Client }

// Put stores a policy at the service.
func (p Policies) Put(ctx context.Context, id, text string) error {
	return p.Client.SetAttestationPolicy(ctx, id, text)
}

// Text is not in the protocol.
func (Policies) Text(context.Context, string) (string, error) {
	return "", fmt.Errorf("reading an attestation policy: %w", errors.ErrUnsupported)
}

// IDs is not in the protocol.
func (Policies) IDs(context.Context) ([]string, error) {
	return nil, fmt.Errorf("listing attestation policies: %w", errors.ErrUnsupported)
}
