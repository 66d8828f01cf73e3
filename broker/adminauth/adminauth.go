// Package adminauth decides who may administrate the broker, and what (kbs-protocol.md section 8).
//
// Bearer: one token made at the first start (package admintoken). JWT: tokens of identity providers, whose role claim is matched
// against an access list. Certificates: TLS certificates (package clientcert checks them), whose names have roles in the same list.
// AnyOf and AllOf combine them. DenyAll: nobody. InsecureAllowAll: everybody, for closed test set-ups.
package adminauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/keyset"
)

// ErrDenied is wrapped by every refusal. What follows it begins with upstream's words where upstream has a refusal of that kind:
// its clients and tests look for them.
var ErrDenied = errors.New("admin access denied")

// Call is one administrative request.
type Call struct {
	Bearer string // of the Authorization header, without "Bearer "
	Method string
	Path   string // without the query
	// Certificate is the name of the verified TLS certificate, as package clientcert writes it; empty when there is none.
	Certificate string
	// Fingerprint is the SHA-256 of that certificate, in hex.
	Fingerprint string
	// CertificateProblem is why a certificate that was shown does not count; Certificate is then empty.
	CertificateProblem error
}

// Authority decides about calls and names the caller for the audit log.
type Authority interface {
	Admit(ctx context.Context, c Call) (name string, err error)
}

// DenyAll admits nobody.
type DenyAll struct{}

// Admit is part of Authority.
func (DenyAll) Admit(context.Context, Call) (string, error) {
	return "", fmt.Errorf("%w: DenyAll authorization_mode is enabled: nobody may call this (admin.mode is \"deny-all\")", ErrDenied)
}

// InsecureAllowAll admits everybody.
type InsecureAllowAll struct{}

// Admit is part of Authority.
func (InsecureAllowAll) Admit(context.Context, Call) (string, error) {
	return "anybody (insecure-allow-all)", nil
}

// Bearer admits the holder of one token.
type Bearer struct {
	Tokens interface {
		Check(ctx context.Context, token string) (string, error)
	}
}

// Admit is part of Authority.
func (b Bearer) Admit(ctx context.Context, c Call) (string, error) {
	name, err := b.Tokens.Check(ctx, c.Bearer)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return name, nil
}

// Provider is an identity provider: its keys, and what its tokens must say. Empty issuer and audience are not checked.
type Provider struct {
	Issuer   string
	Audience string
	Keys     *keyset.Set
}

// JWT admits holders of tokens with a role.
type JWT struct {
	providers []Provider
	rules     rules
	now       func() time.Time
}

// leeway is how far the clocks of provider and broker may be apart.
const leeway = time.Minute

const maxToken = 64 << 10

// NewJWT checks the rules and makes an authority.
func NewJWT(providers []Provider, rules []Rule, now func() time.Time) (*JWT, error) {
	if len(providers) == 0 {
		return nil, errors.New("admin authentication by JWT needs at least one identity provider")
	}
	compiled, err := compile(rules)
	if err != nil {
		return nil, err
	}
	return &JWT{providers: providers, rules: compiled, now: now}, nil
}

// Admit is part of Authority.
func (j *JWT) Admit(_ context.Context, c Call) (string, error) {
	if c.Bearer == "" {
		return "", fmt.Errorf("%w: the request has no token (Authorization: Bearer)", ErrDenied)
	}
	who, err := j.identify(c.Bearer)
	if err != nil {
		return "", fmt.Errorf("%w: Cannot verify token with any of the issuers: %w", ErrDenied, err)
	}
	if err := j.rules.admit(who.Role, c); err != nil {
		return "", err
	}
	return who.name(), nil
}

// identity is what the broker reads of a token.
type identity struct {
	Role    string   `json:"role"`
	Subject string   `json:"sub"`
	Issuer  string   `json:"iss"`
	Aud     audience `json:"aud"`
	Exp     *int64   `json:"exp"`
	Nbf     *int64   `json:"nbf"`
}

func (i identity) name() string {
	if i.Subject == "" {
		return fmt.Sprintf("role %.64s", i.Role)
	}
	return fmt.Sprintf("%.64s (role %.64s)", i.Subject, i.Role)
}

// audience is one text or a list of them.
type audience []string

// UnmarshalJSON is part of json.Unmarshaler.
func (a *audience) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*a = audience{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(raw, &many); err != nil {
		return errors.New("aud is neither a text nor a list of texts")
	}
	*a = many
	return nil
}

func (j *JWT) identify(compact string) (*identity, error) {
	if len(compact) > maxToken {
		return nil, fmt.Errorf("the token has %d bytes, at most %d are read", len(compact), maxToken)
	}
	jws, err := jose.ParseSignedCompact(compact, keyset.AllAlgorithms())
	if err != nil {
		return nil, fmt.Errorf("the token is not a signed JWT: %w", err)
	}
	var why []error
	for n, p := range j.providers {
		who, err := j.by(p, jws)
		if err == nil {
			return who, nil
		}
		why = append(why, fmt.Errorf("identity provider %d: %w", n+1, err))
	}
	return nil, errors.Join(why...)
}

// plain is a text of a token without what would upset a terminal or a log.
func plain(s string) string { return strings.Trim(fmt.Sprintf("%.64q", s), `"`) }

// by checks a token as one provider's.
func (j *JWT) by(p Provider, jws *jose.JSONWebSignature) (*identity, error) {
	header := jws.Signatures[0].Protected
	var payload []byte
	for _, key := range p.Keys.Keys() {
		// A JWK with an id is for tokens that name it; a PEM key has none and is tried.
		if key.ID != "" && key.ID != header.KeyID {
			continue
		}
		var err error
		if payload, err = key.Verify(jws, header.Algorithm); err == nil {
			break
		}
	}
	if payload == nil {
		return nil, errors.New("the token is not signed by one of its keys")
	}
	var who identity
	if err := json.NewDecoder(bytes.NewReader(payload)).Decode(&who); err != nil {
		return nil, fmt.Errorf("reading the token's claims: %w", err)
	}
	now := j.now()
	switch {
	case who.Exp == nil:
		return nil, errors.New("the token has no exp")
	case !now.Before(time.Unix(*who.Exp, 0).Add(leeway)):
		return nil, fmt.Errorf("the token expired at %s", time.Unix(*who.Exp, 0).UTC().Format(time.RFC3339))
	case who.Nbf != nil && now.Add(leeway).Before(time.Unix(*who.Nbf, 0)):
		return nil, fmt.Errorf("the token is not good before %s", time.Unix(*who.Nbf, 0).UTC().Format(time.RFC3339))
	case p.Issuer != "" && who.Issuer != p.Issuer:
		return nil, fmt.Errorf("the token's iss is %.128q, want %q", who.Issuer, p.Issuer)
	case p.Audience != "" && !slices.Contains(who.Aud, p.Audience):
		return nil, fmt.Errorf("the token's aud is %.128q, want %q among it", []string(who.Aud), p.Audience)
	case who.Role == "":
		return nil, errors.New("the token has no role")
	}
	return &who, nil
}
