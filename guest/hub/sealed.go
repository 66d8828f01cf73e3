package hub

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/cloister/cloister/wire/kbs"
)

// maxSealed bounds a sealed secret.
const maxSealed = 1 << 20

// sealedHeader is the JWS protected header of a sealed secret.
type sealedHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

// sealedPayload is what is sealed (cdh-and-images.md section 1.2).
type sealedPayload struct {
	Version  string `json:"version"`
	Type     string `json:"type"`
	Name     string `json:"name"`
	Provider string `json:"provider"`
}

// UnsealSecret opens a sealed secret: it verifies the signature under the key that the header names, and fetches what
// the payload points at. White space around the text is ignored, because files end in line breaks.
func (h *Hub) UnsealSecret(ctx context.Context, sealed []byte) ([]byte, error) {
	if len(sealed) > maxSealed {
		return nil, fmt.Errorf("unsealing: %d bytes, at most %d are read", len(sealed), maxSealed)
	}
	parts := strings.Split(string(bytes.TrimSpace(sealed)), ".")
	if len(parts) != 4 || parts[0] != "sealed" {
		return nil, errors.New(`unsealing: not of the form "sealed.<header>.<payload>.<signature>"`)
	}
	if !h.cfg.SkipSealedVerification {
		if err := h.verifySealed(ctx, parts); err != nil {
			return nil, fmt.Errorf("unsealing: %w", err)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, fmt.Errorf("unsealing: payload: %w", err)
	}
	var p sealedPayload
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("unsealing: payload: %w", err)
	}
	if p.Version != "0.1.0" {
		return nil, fmt.Errorf("unsealing: payload version is %.32q, want 0.1.0", p.Version)
	}
	if p.Type != "vault" || !strings.EqualFold(p.Provider, "kbs") {
		return nil, fmt.Errorf("unsealing: type %.32q of provider %.32q is not supported, want vault of kbs", p.Type, p.Provider)
	}
	b, err := h.Resource(ctx, p.Name)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return b, nil
}

// verifySealed checks the ES256 signature over header and payload.
func (h *Hub) verifySealed(ctx context.Context, parts []string) error {
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	var header sealedHeader
	if err := json.Unmarshal(raw, &header); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if header.Alg != "ES256" {
		return fmt.Errorf("signature algorithm is %.32q, want ES256", header.Alg)
	}
	if _, err := kbs.ParseResourceURI(header.Kid); err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	text, err := h.Resource(ctx, header.Kid)
	if err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	key, err := signingKey(text)
	if err != nil {
		return fmt.Errorf("signing key %s: %w", header.Kid, err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if len(sig) != 64 {
		return fmt.Errorf("signature has %d bytes, want 64", len(sig))
	}
	sum := sha256.Sum256([]byte(parts[1] + "." + parts[2]))
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	if !ecdsa.Verify(key, sum[:], r, s) {
		return fmt.Errorf("the signature does not verify under %s", header.Kid)
	}
	return nil
}

// signingKey reads a P-256 JWK. Members beyond kty, crv, x and y are tolerated.
func signingKey(text []byte) (*ecdsa.PublicKey, error) {
	var jwk struct{ Kty, Crv, X, Y string }
	if err := json.Unmarshal(text, &jwk); err != nil {
		return nil, errors.New("not a JWK")
	}
	if jwk.Kty != "EC" || jwk.Crv != "P-256" {
		return nil, fmt.Errorf("key type is %.16q with curve %.16q, want EC with P-256", jwk.Kty, jwk.Crv)
	}
	point := []byte{4}
	for _, c := range []string{jwk.X, jwk.Y} {
		b, err := base64.RawURLEncoding.DecodeString(c)
		if err != nil || len(b) != 32 {
			return nil, errors.New("a coordinate is not 32 bytes of base64url")
		}
		point = append(point, b...)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}
