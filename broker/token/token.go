// Package token makes and checks attestation tokens: EAR claims signed with ES256 (attestation-service.md section 8).
//
// The signing keys are kept sealed in the store, so tokens survive a restart; one is made at the first start, others when keys are
// rotated. Only tokens of these keys are accepted, only with ES256: the key and the algorithm named inside a token are never believed.
package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What a token says about its maker; relying parties compare these texts.
const (
	DefaultLifetime = 5 * time.Minute
	Profile         = "tag:github.com,2024:confidential-containers/Trustee"
	Issuer          = "CoCo-Attestation-Service"
	developer       = "https://confidentialcontainers.org"
	build           = "attestation-service 0.1.0"
)

// MaxSize bounds a token, so that a hostile header costs little.
const MaxSize = 8 << 20

// ErrInvalid is wrapped by every refusal of a token.
var ErrInvalid = errors.New("attestation token is not valid")

// JWK is the public signing key as it appears in token headers and in the key set.
type JWK struct {
	Alg string `json:"alg"`
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y"`
	// X5C are the certificates of the key, base64 of DER, its own first.
	X5C []string `json:"x5c,omitempty"`
}

// SigningKey is a key of the service.
type SigningKey struct {
	Private *ecdsa.PrivateKey // on P-256
	// Certificates lead from that of the key to one that relying parties know; there may be none.
	Certificates []*x509.Certificate
	// From is when the key begins to sign; until then it is published already. Until is when its tokens end to count; zero is never.
	From, Until time.Time
}

// usable is a SigningKey that is ready to sign.
type usable struct {
	SigningKey
	jwk    JWK
	signer jose.Signer
}

// Signer makes and checks tokens.
type Signer struct {
	now      func() time.Time
	lifetime time.Duration
	keys     atomic.Pointer[[]usable]
	issued   issued
}

// NewSigner makes a Signer; a lifetime of zero means DefaultLifetime.
func NewSigner(now func() time.Time, lifetime time.Duration, keys ...SigningKey) (*Signer, error) {
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	s := &Signer{now: now, lifetime: lifetime}
	return s, s.SetKeys(keys...)
}

// SetKeys replaces the keys. Tokens of keys that are not among them do not count any more.
func (s *Signer) SetKeys(keys ...SigningKey) error {
	var ready []usable
	for _, k := range keys {
		u, err := prepare(k)
		if err != nil {
			return err
		}
		ready = append(ready, *u)
	}
	if len(ready) == 0 {
		return errors.New("there is no token signing key")
	}
	s.keys.Store(&ready)
	return nil
}

func prepare(k SigningKey) (*usable, error) {
	if k.Private.Curve != elliptic.P256() {
		return nil, errors.New("token signing key is not on P-256")
	}
	point, err := k.Private.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding token signing key: %w", err)
	}
	jwk := JWK{
		Alg: "ES256", Kty: "EC", Crv: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1:33]), Y: base64.RawURLEncoding.EncodeToString(point[33:65]),
	}
	for i, c := range k.Certificates {
		if i == 0 && !sameKey(c.PublicKey, &k.Private.PublicKey) {
			return nil, errors.New("the first certificate of the token signing key is of another key")
		}
		jwk.X5C = append(jwk.X5C, base64.StdEncoding.EncodeToString(c.Raw))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k.Private},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("jwk", jwk))
	if err != nil {
		return nil, fmt.Errorf("preparing token signing: %w", err)
	}
	return &usable{k, jwk, signer}, nil
}

// live are the keys whose tokens count, and current the one that signs: of those that have begun, the one that began last.
func (s *Signer) live() (live []usable, current *usable) {
	now := s.now()
	for _, k := range *s.keys.Load() {
		if !k.Until.IsZero() && !now.Before(k.Until) {
			continue
		}
		live = append(live, k)
		if !now.Before(k.From) && (current == nil || k.From.After(current.From)) {
			current = &k
		}
	}
	return live, current
}

// KeySet is the JWK set that relying parties fetch. A key that is yet to come is in it.
func (s *Signer) KeySet() map[string][]JWK {
	set := []JWK{}
	live, _ := s.live()
	for _, k := range live {
		set = append(set, k.jwk)
	}
	return map[string][]JWK{"keys": set}
}

// Issue signs a token over submods. The id becomes "jti": it leads from the token to the record of its attestation.
func (s *Signer) Issue(id string, submods map[string]any) (string, error) {
	now := s.now()
	payload, err := json.Marshal(map[string]any{
		"eat_profile":     Profile,
		"iat":             now.Unix(),
		"exp":             now.Add(s.lifetime).Unix(),
		"iss":             Issuer,
		"jti":             id,
		"ear.verifier-id": map[string]string{"developer": developer, "build": build},
		"submods":         submods,
	})
	if err != nil {
		return "", fmt.Errorf("encoding attestation token: %w", err)
	}
	_, key := s.live()
	if key == nil {
		return "", errors.New("signing attestation token: no key is good now")
	}
	jws, err := key.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing attestation token: %w", err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("signing attestation token: %w", err)
	}
	s.issued.add(compact, &key.Private.PublicKey)
	return compact, nil
}

// Verify returns the claims of a token of this signer that is still good. The error wraps ErrInvalid.
func (s *Signer) Verify(compact string) (map[string]any, error) {
	if len(compact) > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(compact), MaxSize)
	}
	live, _ := s.live()
	payload, ok := s.issued.payload(compact, live)
	if !ok {
		var err error
		if payload, err = verify(compact, live); err != nil {
			return nil, err
		}
	}
	claims, err := decodeClaims(payload)
	if err != nil {
		return nil, err
	}
	return claims, checkTimes(claims, s.now(), 0)
}

// verify returns the payload of a token that one of the keys signed.
func verify(compact string, keys []usable) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("%w: want a JWS signed with ES256: %w", ErrInvalid, err)
	}
	for _, k := range keys {
		if payload, err := jws.Verify(&k.Private.PublicKey); err == nil {
			return payload, nil
		}
	}
	return nil, fmt.Errorf("%w: it is not signed by this broker", ErrInvalid)
}
