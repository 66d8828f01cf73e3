// Package token makes and checks attestation tokens: EAR claims signed with ES256 (attestation-service.md section 8).
//
// The signing key is made at the first start and kept sealed in the store, so tokens survive a restart. Only tokens of
// this key are accepted, only with ES256: the key and the algorithm named inside a token are never believed.
package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/store"
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

// KeyPlace is where the store has the signing key.
const KeyPlace = "token-signing-key"

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// JWK is the public signing key as it appears in token headers and in the key set.
type JWK struct {
	Alg string `json:"alg"`
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// Signer makes and checks tokens.
type Signer struct {
	key      *ecdsa.PrivateKey
	jwk      JWK
	signer   jose.Signer
	now      func() time.Time
	lifetime time.Duration
}

// LoadOrCreateKey returns the signing key of the store, making it at the first start.
func LoadOrCreateKey(ctx context.Context, db backend, seal sealer) (*ecdsa.PrivateKey, error) {
	sealed, err := db.Get(ctx, store.Keys, KeyPlace)
	if errors.Is(err, store.ErrNotFound) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("making token signing key: %w", err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encoding token signing key: %w", err)
		}
		if sealed, err = seal.Seal(KeyPlace, der); err != nil {
			return nil, err
		}
		made, err := db.PutNew(ctx, store.Keys, KeyPlace, sealed)
		if err != nil {
			return nil, fmt.Errorf("storing token signing key: %w", err)
		}
		if made {
			return key, nil
		}
		// Another broker of the same store was faster: its key is the one.
		if sealed, err = db.Get(ctx, store.Keys, KeyPlace); err != nil {
			return nil, fmt.Errorf("reading token signing key: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading token signing key: %w", err)
	}
	der, err := seal.Open(KeyPlace, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening token signing key: %w", err)
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading token signing key: %w", err)
	}
	return key, nil
}

// NewSigner makes a Signer; a lifetime of zero means DefaultLifetime.
func NewSigner(key *ecdsa.PrivateKey, now func() time.Time, lifetime time.Duration) (*Signer, error) {
	if key.Curve != elliptic.P256() {
		return nil, errors.New("token signing key is not on P-256")
	}
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding token signing key: %w", err)
	}
	jwk := JWK{
		Alg: "ES256", Kty: "EC", Crv: "P-256",
		X: base64.RawURLEncoding.EncodeToString(point[1:33]), Y: base64.RawURLEncoding.EncodeToString(point[33:65]),
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("jwk", jwk))
	if err != nil {
		return nil, fmt.Errorf("preparing token signing: %w", err)
	}
	return &Signer{key: key, jwk: jwk, signer: signer, now: now, lifetime: lifetime}, nil
}

// KeySet is the JWK set that relying parties fetch.
func (s *Signer) KeySet() map[string][]JWK { return map[string][]JWK{"keys": {s.jwk}} }

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
	jws, err := s.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing attestation token: %w", err)
	}
	return jws.CompactSerialize()
}

// Verify returns the claims of a token of this signer that is still good. The error wraps ErrInvalid.
func (s *Signer) Verify(compact string) (map[string]any, error) {
	if len(compact) > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(compact), MaxSize)
	}
	jws, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("%w: want a JWS signed with ES256: %w", ErrInvalid, err)
	}
	payload, err := jws.Verify(&s.key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not signed by this broker", ErrInvalid)
	}
	claims, err := decodeClaims(payload)
	if err != nil {
		return nil, err
	}
	return claims, checkTimes(claims, s.now(), 0)
}
