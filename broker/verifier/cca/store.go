package cca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cloister/cloister/tee/cca"
)

// TrustAnchors knows the CPAK, the key a platform signs its tokens with.
type TrustAnchors interface {
	// Lookup returns the key of one platform, or an error that says it is unknown.
	Lookup(implementationID, instanceID []byte) (*ecdsa.PublicKey, error)
}

// Store is trust anchors from a file.
type Store struct {
	keys map[string]*ecdsa.PublicKey
}

type jwk struct {
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// ParseStore reads trust anchors as upstream keeps them: a JSON list of {"pkey": JWK, "implementation-id", "instance-id"},
// ids in hex. One bad entry makes the whole file bad: a store that lacks an anchor fails later and less clearly.
func ParseStore(text []byte) (*Store, error) {
	var entries []struct {
		Key              jwk    `json:"pkey"`
		ImplementationID string `json:"implementation-id"`
		InstanceID       string `json:"instance-id"`
	}
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("reading CCA trust anchors: %w", err)
	}
	s := &Store{keys: map[string]*ecdsa.PublicKey{}}
	for i, e := range entries {
		implementation, err := hexOf("implementation-id", e.ImplementationID, cca.ImplementationIDSize)
		if err != nil {
			return nil, fmt.Errorf("reading CCA trust anchor %d: %w", i, err)
		}
		instance, err := hexOf("instance-id", e.InstanceID, cca.InstanceIDSize)
		if err != nil {
			return nil, fmt.Errorf("reading CCA trust anchor %d: %w", i, err)
		}
		key, err := e.Key.publicKey()
		if err != nil {
			return nil, fmt.Errorf("reading CCA trust anchor %d: %w", i, err)
		}
		id := string(implementation) + string(instance)
		if _, dup := s.keys[id]; dup {
			return nil, fmt.Errorf("reading CCA trust anchor %d: a second one for instance %x", i, instance)
		}
		s.keys[id] = key
	}
	return s, nil
}

// Lookup is part of TrustAnchors.
func (s *Store) Lookup(implementationID, instanceID []byte) (*ecdsa.PublicKey, error) {
	if key, ok := s.keys[string(implementationID)+string(instanceID)]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("no trust anchor for implementation %x, instance %x, among %d", implementationID, instanceID, len(s.keys))
}

// AnyPlatform is one key for whatever platform claims it, for looking at saved evidence.
type AnyPlatform struct {
	Key *ecdsa.PublicKey
}

// Lookup is part of TrustAnchors.
func (a AnyPlatform) Lookup(_, _ []byte) (*ecdsa.PublicKey, error) { return a.Key, nil }

// ParseJWK reads a public key that stands alone.
func ParseJWK(text []byte) (*ecdsa.PublicKey, error) {
	var k jwk
	if err := json.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("reading JWK: %w", err)
	}
	return k.publicKey()
}

func (k jwk) publicKey() (*ecdsa.PublicKey, error) {
	if k.Type != "EC" {
		return nil, fmt.Errorf("kty = %.16q, expected EC", k.Type)
	}
	x, err := base64.RawURLEncoding.DecodeString(k.X)
	if err != nil {
		return nil, fmt.Errorf("x: %w", err)
	}
	y, err := base64.RawURLEncoding.DecodeString(k.Y)
	if err != nil {
		return nil, fmt.Errorf("y: %w", err)
	}
	if len(x) != len(y) {
		return nil, fmt.Errorf("x has %d bytes and y %d", len(x), len(y))
	}
	return publicKey(cca.Point{Curve: k.Curve, Uncompressed: slices.Concat([]byte{4}, x, y)})
}

// publicKey refuses points that are not on the curve.
func publicKey(p cca.Point) (*ecdsa.PublicKey, error) {
	curves := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	curve, ok := curves[p.Curve]
	if !ok {
		return nil, fmt.Errorf("curve %.16q, expected P-256, P-384 or P-521", p.Curve)
	}
	return ecdsa.ParseUncompressedPublicKey(curve, p.Uncompressed)
}

func hexOf(name, text string, size int) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if size > 0 && len(b) != size {
		return nil, fmt.Errorf("%s has %d bytes, expected %d", name, len(b), size)
	}
	return b, nil
}

// hexText is bytes as hex in JSON.
type hexText []byte

func (h *hexText) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	b, err := hex.DecodeString(s)
	*h = b
	return err
}

// ReferenceValues are the platforms and realms of upstream's rv-store.
type ReferenceValues struct {
	Platforms []struct {
		ImplementationID hexText `json:"implementation-id"`
		Config           hexText `json:"platform-configuration"`
		Components       []struct {
			Value    hexText `json:"measurement-value"`
			SignerID hexText `json:"signer-id"`
			Type     string  `json:"component-type"`
		} `json:"sw-components"`
	} `json:"platform"`
	Realms []struct {
		Initial         hexText   `json:"initial-measurement"`
		HashAlg         string    `json:"rak-hash-algorithm"`
		Extensible      []hexText `json:"extensible-measurements"`
		Personalization hexText   `json:"personalization-value"`
	} `json:"realm"`
}

// ParseReferenceValues reads a rv-store.
func ParseReferenceValues(text []byte) (*ReferenceValues, error) {
	var v ReferenceValues
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, fmt.Errorf("reading CCA reference values: %w", err)
	}
	return &v, nil
}

// platform reports whether one entry names the platform, its configuration, and every piece of firmware it runs.
func (v *ReferenceValues) platform(p *cca.Platform) bool {
	for _, e := range v.Platforms {
		if !bytes.Equal(e.ImplementationID, p.ImplementationID) || !bytes.Equal(e.Config, p.Config) {
			continue
		}
		known := func(c cca.SWComponent) bool {
			for _, r := range e.Components {
				if bytes.Equal(r.Value, c.Value) && bytes.Equal(r.SignerID, c.SignerID) && r.Type == c.Type {
					return true
				}
			}
			return false
		}
		if !slices.ContainsFunc(p.Components, func(c cca.SWComponent) bool { return !known(c) }) {
			return true
		}
	}
	return false
}

// realm reports whether one entry has the realm's measurements. What an entry does not name may be anything.
func (v *ReferenceValues) realm(r *cca.Realm) bool {
	for _, e := range v.Realms {
		if len(e.Initial) == 0 || !bytes.Equal(e.Initial, r.Initial) || e.HashAlg != "" && e.HashAlg != r.PublicKeyHash {
			continue
		}
		if e.Personalization != nil && !bytes.Equal(e.Personalization, r.Personalization) {
			continue
		}
		same := func(a hexText, b []byte) bool { return bytes.Equal(a, b) }
		if e.Extensible == nil || slices.EqualFunc(e.Extensible, r.Extensible, same) {
			return true
		}
	}
	return false
}
