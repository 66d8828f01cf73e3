package image

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

const (
	cosignPayloadType  = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignAnnotation   = "dev.cosignproject.cosign/signature"
	cosignSigned       = "cosign container image signature"
	maxCosignPayload   = 256 << 10
	maxCosignSignature = 16 << 10
	maxSignatures      = 64
	maxKeyBytes        = 64 << 10
)

// signedPayload is what simple signing and cosign sign.
type signedPayload struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
}

// checkCosign looks for a cosign signature (key-based, .sig tag) that was made with the requirement's key, for this
// image's digest and for an accepted identity. One is enough. Without a signedIdentity the signature must be for the
// image's repository; upstream checks nothing then.
func (c *Client) checkCosign(ctx context.Context, reg *registry, ref Reference, img *resolved, req requirement) error {
	key, err := c.cosignKey(ctx, req)
	if err != nil {
		return err
	}
	id := req.SignedIdentity
	if id == nil {
		id = &identity{Type: "matchRepository"}
	}
	digests := []Digest{img.top}
	if img.manifest != img.top {
		digests = append(digests, img.manifest) // an index whose platform image was signed
	}
	var errs []error
	for _, d := range digests {
		sigs, err := fetchCosign(ctx, reg, d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for i, s := range sigs {
			err := s.verify(key, d, id, ref)
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("signature %d of %s: %w", i+1, d, err))
		}
		if len(sigs) == 0 {
			errs = append(errs, fmt.Errorf("%s has no cosign signatures", cosignTag(d)))
		}
	}
	return fmt.Errorf("no acceptable signature by key %s: %w", req.keyName(), errors.Join(errs...))
}

func cosignTag(d Digest) string { return d.Algorithm + "-" + d.Hex + ".sig" }

// keyName names a requirement's key for messages.
func (r requirement) keyName() string {
	if r.KeyPath != "" {
		return truncate(r.KeyPath, 200)
	}
	return "in keyData"
}

// cosignKey reads the public key: PEM or DER, from keyPath, or keyData as base64 or as it is.
func (c *Client) cosignKey(ctx context.Context, req requirement) (crypto.PublicKey, error) {
	data := []byte(req.KeyData)
	if req.KeyPath != "" {
		var err error
		if data, err = c.resources.get(ctx, req.KeyPath); err != nil {
			return nil, fmt.Errorf("fetching the public key: %w", err)
		}
	} else if plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(req.KeyData)); err == nil {
		data = plain
	}
	key, err := parsePublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("public key %s: %w", req.keyName(), err)
	}
	return key, nil
}

func parsePublicKey(data []byte) (crypto.PublicKey, error) {
	if len(data) > maxKeyBytes {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(data), maxKeyBytes)
	}
	der := data
	if block, rest := pem.Decode(data); block != nil {
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("PEM block is %q, expected \"PUBLIC KEY\"", truncate(block.Type, 60))
		}
		if len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("more follows the PEM block")
		}
		der = block.Bytes
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("it is neither PEM nor DER of a public key")
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if bits := k.Curve.Params().BitSize; bits < 256 {
			return nil, fmt.Errorf("its curve has %d bits, at least 256 are needed", bits)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return nil, fmt.Errorf("RSA key has %d bits, 2048 to 8192 are accepted", k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("key type %T is not supported", key)
	}
	return key, nil
}

// verifySignature checks a signature by the scheme that the key implies. For P-384 and P-521 both the curve's own
// hash and SHA-256, which cosign uses for every key, are accepted.
func verifySignature(key crypto.PublicKey, message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, sum[:], signature) {
			return true
		}
		switch k.Curve.Params().BitSize {
		case 384:
			long := sha512.Sum384(message)
			return ecdsa.VerifyASN1(k, long[:], signature)
		case 521:
			long := sha512.Sum512(message)
			return ecdsa.VerifyASN1(k, long[:], signature)
		}
		return false
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	}
	return false
}

// cosignSignature is one layer of a signature image.
type cosignSignature struct {
	payload   []byte
	signature []byte
}

// fetchCosign reads the signature image of a manifest digest.
func fetchCosign(ctx context.Context, reg *registry, d Digest) ([]cosignSignature, error) {
	data, contentType, _, err := reg.manifest(ctx, cosignTag(d), Digest{})
	if err != nil {
		var status *statusError
		if errors.As(err, &status) && status.status == http.StatusNotFound {
			return nil, fmt.Errorf("image is not signed: the registry has no %s", cosignTag(d))
		}
		return nil, err
	}
	m, err := parseSignatureManifest(data, contentType)
	if err != nil {
		return nil, fmt.Errorf("signature image %s: %w", cosignTag(d), err)
	}
	var out []cosignSignature
	for _, l := range m.Layers {
		if l.MediaType != cosignPayloadType {
			continue
		}
		text := strings.NewReplacer("\r", "", "\n", "").Replace(l.Annotations[cosignAnnotation])
		if len(text) == 0 || len(text) > maxCosignSignature {
			continue
		}
		sig, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			continue
		}
		payload, err := reg.blob(ctx, l, maxCosignPayload)
		if err != nil {
			return nil, fmt.Errorf("signature image %s: %w", cosignTag(d), err)
		}
		out = append(out, cosignSignature{payload: payload, signature: sig})
	}
	return out, nil
}

// parseSignatureManifest reads the manifest of a signature image, whose layers are not an image's.
func parseSignatureManifest(data []byte, contentType string) (*manifest, error) {
	var doc document
	if err := decodeJSON(data, &doc, false); err != nil {
		return nil, fmt.Errorf("not valid JSON: %w", err)
	}
	if doc.Manifests != nil || doc.SchemaVersion != 2 {
		return nil, fmt.Errorf("not a manifest (%s)", truncate(contentType, 100))
	}
	if len(doc.Layers) > maxSignatures {
		return nil, fmt.Errorf("it has %d signatures, the limit is %d", len(doc.Layers), maxSignatures)
	}
	return &manifest{Layers: doc.Layers}, nil
}

// verify checks one signature: the key first, and only then what it says.
func (s cosignSignature) verify(key crypto.PublicKey, d Digest, id *identity, ref Reference) error {
	if !verifySignature(key, s.payload, s.signature) {
		return errors.New("it was not made by this key, or its payload was changed")
	}
	var p signedPayload
	if err := decodeJSON(s.payload, &p, false); err != nil {
		return fmt.Errorf("its payload is not valid JSON: %w", err)
	}
	if p.Critical.Type != cosignSigned {
		return fmt.Errorf("its type is %q, expected %q", truncate(p.Critical.Type, 80), cosignSigned)
	}
	if p.Critical.Image.Digest != d.String() {
		return fmt.Errorf("it is for image %q, expected %q", truncate(p.Critical.Image.Digest, 150), d)
	}
	return id.accepts(ref, p.Critical.Identity.DockerReference)
}
