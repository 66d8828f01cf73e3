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
)

const maxSealed = 1 << 20

// UnsealSecret opens a sealed secret: it checks the signature (ES256) with the
// key the broker has under the header's kid, and fetches what the payload names.
func (h *Hub) UnsealSecret(ctx context.Context, sealed []byte) ([]byte, error) {
	b, err := h.unseal(ctx, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", err)
	}
	return b, nil
}

func (h *Hub) unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	if len(sealed) > maxSealed {
		return nil, fmt.Errorf("it has %d bytes, expected at most %d", len(sealed), maxSealed)
	}
	parts := strings.Split(strings.TrimSpace(string(sealed)), ".")
	if len(parts) != 4 || parts[0] != "sealed" {
		return nil, errors.New("it is not of the form sealed.<header>.<payload>.<signature>")
	}
	if !h.cfg.CDH.SkipVerification {
		if err := h.verifySealed(ctx, parts[1], parts[2], parts[3]); err != nil {
			return nil, err
		}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, fmt.Errorf("reading the payload: %w", err)
	}
	return h.openPayload(ctx, payload)
}

func (h *Hub) verifySealed(ctx context.Context, header64, payload64, signature64 string) error {
	headerText, err := base64.RawURLEncoding.DecodeString(header64)
	if err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	var header struct {
		Alg  string          `json:"alg"`
		Kid  string          `json:"kid"`
		Crit json.RawMessage `json:"crit"`
	}
	if err := json.Unmarshal(headerText, &header); err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	switch {
	case header.Alg != "ES256":
		return fmt.Errorf("reading the header: alg is %q, expected ES256", header.Alg)
	case header.Crit != nil:
		return errors.New("reading the header: it has critical extensions, which are not known here")
	case header.Kid == "":
		return errors.New("reading the header: kid is missing")
	}
	signature, err := base64.RawURLEncoding.DecodeString(signature64)
	if err != nil || len(signature) != 64 {
		return errors.New("reading the signature: it is not 64 bytes in base64url")
	}
	jwk, err := h.Resource(ctx, header.Kid)
	if err != nil {
		return fmt.Errorf("fetching the signer's key: %w", err)
	}
	key, err := parseSigner(jwk)
	if err != nil {
		return fmt.Errorf("the signer's key %s: %w", header.Kid, err)
	}
	digest := sha256.Sum256([]byte(header64 + "." + payload64))
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(key, digest[:], r, s) {
		return fmt.Errorf("the signature does not verify with the key %s", header.Kid)
	}
	return nil
}

// parseSigner reads a P-256 JWK; members for other uses of the key are passed over.
func parseSigner(text []byte) (*ecdsa.PublicKey, error) {
	var jwk struct{ Kty, Crv, X, Y string }
	if err := json.Unmarshal(text, &jwk); err != nil {
		return nil, errors.New("it is not a JWK") // no cause: it would quote the resource
	}
	if jwk.Kty != "EC" || jwk.Crv != "P-256" {
		return nil, fmt.Errorf("kty is %q and crv %q, expected EC and P-256", jwk.Kty, jwk.Crv)
	}
	x, errX := base64.RawURLEncoding.DecodeString(jwk.X)
	y, errY := base64.RawURLEncoding.DecodeString(jwk.Y)
	if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, errors.New("x and y are not 32 bytes in base64url")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
}

func (h *Hub) openPayload(ctx context.Context, payload []byte) ([]byte, error) {
	var p struct {
		Version     string           `json:"version"`
		Type        string           `json:"type"`
		Name        string           `json:"name"`
		Provider    string           `json:"provider"`
		Settings    *json.RawMessage `json:"provider_settings"`
		Annotations *json.RawMessage `json:"annotations"`
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	if err := d.Decode(&p); err != nil {
		return nil, fmt.Errorf("reading the payload: %w", err)
	}
	switch {
	case p.Version != "0.1.0":
		return nil, fmt.Errorf("payload version is %q, expected 0.1.0", p.Version)
	case p.Type != "vault":
		return nil, fmt.Errorf("payload type is %q, expected vault, the only one in this guest", p.Type)
	case !strings.EqualFold(p.Provider, "kbs"):
		return nil, fmt.Errorf("payload provider is %q, expected kbs, the only one in this guest", p.Provider)
	case p.Settings == nil || p.Annotations == nil:
		return nil, errors.New("payload has no provider_settings or no annotations")
	}
	return h.Resource(ctx, p.Name)
}
