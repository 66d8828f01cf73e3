package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"go.yaml.in/yaml/v3"
)

const (
	simpleSigned          = "atomic container signature"
	maxSimpleSignature    = 256 << 10
	maxSimplePayload      = 64 << 10
	maxKeyringBytes       = 4 << 20
	maxSigstoreConfigSize = 1 << 20
)

// sigstoreConfig says where simple signing's signatures are kept (containers-registries.d).
type sigstoreConfig struct {
	fallback string
	docker   map[string]string // by scope
}

func parseSigstoreConfig(data []byte) (*sigstoreConfig, error) {
	if len(data) > maxSigstoreConfigSize {
		return nil, fmt.Errorf("sigstore configuration has %d bytes, the limit is %d", len(data), maxSigstoreConfigSize)
	}
	type namespace struct {
		Sigstore  string `yaml:"sigstore"`
		Lookaside string `yaml:"lookaside"` // the newer name of the same
	}
	var doc struct {
		Default namespace            `yaml:"default-docker"`
		Docker  map[string]namespace `yaml:"docker"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("sigstore configuration: %w", err)
	}
	where := func(n namespace) string {
		if n.Sigstore != "" {
			return n.Sigstore
		}
		return n.Lookaside
	}
	out := &sigstoreConfig{fallback: where(doc.Default), docker: map[string]string{}}
	for scope, n := range doc.Docker {
		out.docker[scope] = where(n)
	}
	return out, nil
}

// directory finds the directory with the signatures of a manifest.
func (s *sigstoreConfig) directory(ref Reference, d Digest) (string, error) {
	if s == nil {
		return "", errors.New("no sigstore configuration says where the signatures are")
	}
	base := ""
	for _, scope := range scopes(ref) {
		if base = s.docker[scope]; base != "" {
			break
		}
	}
	if base == "" {
		base = s.fallback
	}
	if base == "" {
		return "", fmt.Errorf("the sigstore configuration has no entry for %s", ref.Name())
	}
	dir, ok := strings.CutPrefix(base, "file://")
	if !ok || !strings.HasPrefix(dir, "/") {
		return "", fmt.Errorf("sigstore %q is not supported, expected file:///path", truncate(base, 200))
	}
	return filepath.Join(dir, ref.Repository+"@"+d.Algorithm+"="+d.Hex), nil
}

// checkSimpleSigning looks for an OpenPGP signature by a key of the requirement's ring, for this platform's manifest
// and an accepted identity. One is enough.
func (c *Client) checkSimpleSigning(ctx context.Context, s *settings, ref Reference, img *resolved, req requirement) error {
	ring, err := c.keyring(ctx, req)
	if err != nil {
		return err
	}
	dir, err := s.sigstore.directory(ref, img.manifest)
	if err != nil {
		return err
	}
	blobs, err := readSignatures(dir)
	if err != nil {
		return err
	}
	id := req.SignedIdentity
	if id == nil {
		id = &identity{Type: "matchRepoDigestOrExact"}
	}
	var errs []error
	for name, blob := range blobs {
		err := verifySimple(ring, blob, img.manifest, id, ref)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	if len(blobs) == 0 {
		return fmt.Errorf("image is not signed: no signatures of %s in %s", img.manifest, dir)
	}
	return fmt.Errorf("no acceptable signature by a key of %s: %w", req.keyName(), errors.Join(errs...))
}

func (c *Client) keyring(ctx context.Context, req requirement) (openpgp.EntityList, error) {
	data := []byte(nil)
	var err error
	if req.KeyPath != "" {
		if data, err = c.resources.get(ctx, req.KeyPath); err != nil {
			return nil, fmt.Errorf("fetching the key ring: %w", err)
		}
	} else if data, err = base64.StdEncoding.DecodeString(strings.TrimSpace(req.KeyData)); err != nil {
		return nil, errors.New("keyData is not base64")
	}
	if len(data) > maxKeyringBytes {
		return nil, fmt.Errorf("key ring has %d bytes, the limit is %d", len(data), maxKeyringBytes)
	}
	var ring openpgp.EntityList
	if bytes.Contains(data, []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----")) {
		ring, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
	} else {
		ring, err = openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	if err != nil {
		return nil, fmt.Errorf("key ring %s: %w", req.keyName(), err)
	}
	if len(ring) == 0 {
		return nil, fmt.Errorf("key ring %s holds no keys", req.keyName())
	}
	return ring, nil
}

// readSignatures reads every regular file of a signature directory.
func readSignatures(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading signatures: %w", err)
	}
	out := map[string][]byte{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if len(out) >= maxSignatures {
			return nil, fmt.Errorf("%s has more than %d signatures", dir, maxSignatures)
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading signatures: %w", err)
		}
		data, err := readAtMost(f, maxSimpleSignature)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading signature %s: %w", e.Name(), err)
		}
		out[e.Name()] = data
	}
	return out, nil
}

// verifySimple checks one OpenPGP signed message. Expired and revoked keys are not accepted.
func verifySimple(ring openpgp.EntityList, blob []byte, d Digest, id *identity, ref Reference) error {
	limit := int64(2 * maxSimplePayload)
	md, err := openpgp.ReadMessage(bytes.NewReader(blob), ring, nil, &packet.Config{MaxDecompressedMessageSize: &limit})
	if err != nil {
		return fmt.Errorf("not an OpenPGP signed message: %w", err)
	}
	if md.IsEncrypted || !md.IsSigned {
		return errors.New("not an OpenPGP signed message")
	}
	if md.SignedBy == nil {
		return fmt.Errorf("it was made by key %016X, which is not in the ring", md.SignedByKeyId)
	}
	payload, err := readAtMost(md.UnverifiedBody, maxSimplePayload)
	if err != nil {
		return fmt.Errorf("reading the signed payload: %w", err)
	}
	// The body has been read to its end, and with it the signature that follows.
	if md.SignatureError != nil {
		return fmt.Errorf("signature by key %016X does not hold: %w", md.SignedByKeyId, md.SignatureError)
	}
	if md.Signature == nil {
		return errors.New("the message ends without a signature")
	}
	var p signedPayload
	if err := decodeJSON(payload, &p, false); err != nil {
		return fmt.Errorf("its payload is not valid JSON: %w", err)
	}
	if p.Critical.Type != simpleSigned {
		return fmt.Errorf("its type is %q, expected %q", truncate(p.Critical.Type, 80), simpleSigned)
	}
	if p.Critical.Image.Digest != d.String() {
		return fmt.Errorf("it is for image %q, expected %q", truncate(p.Critical.Image.Digest, 150), d)
	}
	return id.accepts(ref, p.Critical.Identity.DockerReference)
}
