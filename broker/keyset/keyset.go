// Package keyset holds public keys of others that the broker believes: issuers of attestation tokens and of admin tokens.
//
// Keys come from JWK sets and PEM files, local or over HTTPS. They are read when a set is opened and again on Reload, which keeps
// the old keys when a source fails: an outage elsewhere locks nobody out, and never lets anybody in.
package keyset

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/internal/smallfile"
)

const (
	maxSource    = 1 << 20
	fetchTimeout = 20 * time.Second
)

// Key is one public key.
type Key struct {
	// ID is the key id of a JWK, "" for a PEM key.
	ID string
	// Algorithm is the one the JWK names, "" when it names none.
	Algorithm string
	Public    crypto.PublicKey
}

// Source says where keys come from: a JWK set or PEM text, as a path, a file:// or an https:// URL, or an OIDC issuer.
type Source struct {
	JWKSet string
	PEM    string
	// Issuer is an https:// URL whose discovery document leads to the keys. The document must name the very same issuer.
	Issuer string
}

// Set is the keys of some sources.
type Set struct {
	client  *http.Client
	sources []Source

	mu   sync.RWMutex
	keys [][]Key // by source
}

// Open reads all sources; every one must be readable and hold a key. A nil client means one with bounds and no surprises.
func Open(ctx context.Context, client *http.Client, sources ...Source) (*Set, error) {
	if client == nil {
		client = &http.Client{Timeout: fetchTimeout}
	}
	s := &Set{client: client, sources: sources, keys: make([][]Key, len(sources))}
	return s, s.Reload(ctx)
}

// Reload reads all sources again. The keys of a source that fails stay as they were; the error names it.
func (s *Set) Reload(ctx context.Context) error {
	var errs []error
	for i, src := range s.sources {
		keys, err := s.read(ctx, src)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.mu.Lock()
		s.keys[i] = keys
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Keys returns all keys.
func (s *Set) Keys() []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Key
	for _, k := range s.keys {
		all = append(all, k...)
	}
	return all
}

// Find returns the keys with an id.
func (s *Set) Find(id string) []Key {
	var found []Key
	for _, k := range s.Keys() {
		if id != "" && k.ID == id {
			found = append(found, k)
		}
	}
	return found
}

func (s *Set) read(ctx context.Context, src Source) ([]Key, error) {
	switch {
	case src.JWKSet != "" && src.PEM != "":
		return nil, fmt.Errorf("key source names a JWK set %q and a PEM %q, want one of them", src.JWKSet, src.PEM)
	case src.Issuer != "" && src.JWKSet+src.PEM != "":
		return nil, fmt.Errorf("key source names an issuer %q and %q, want one of them", src.Issuer, src.JWKSet+src.PEM)
	case src.Issuer != "":
		keys, err := s.discover(ctx, src.Issuer, true)
		if err != nil {
			return nil, fmt.Errorf("reading the keys of issuer %s: %w", src.Issuer, err)
		}
		return keys, nil
	case src.PEM != "":
		text, err := s.fetch(ctx, src.PEM)
		if err != nil {
			return nil, fmt.Errorf("reading public keys: %w", err)
		}
		keys, err := parsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("reading public keys of %s: %w", src.PEM, err)
		}
		return keys, nil
	case src.JWKSet != "":
		keys, err := s.jwkSet(ctx, src.JWKSet)
		if err != nil {
			return nil, fmt.Errorf("reading JWK set: %w", err)
		}
		return keys, nil
	}
	return nil, errors.New("key source is empty, want a JWK set, a PEM or an issuer")
}

// jwkSet reads a set, or the set that the OIDC discovery document below an HTTPS address leads to.
func (s *Set) jwkSet(ctx context.Context, from string) ([]Key, error) {
	text, err := s.fetch(ctx, from)
	if err == nil {
		var keys []Key
		if keys, err = parseJWKSet(text); err == nil {
			return keys, nil
		}
	}
	if !strings.HasPrefix(from, "https://") {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	keys, derr := s.discover(ctx, from, false)
	if derr != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", from, err), derr)
	}
	return keys, nil
}

func (s *Set) fetch(ctx context.Context, from string) ([]byte, error) {
	if !strings.Contains(from, "://") {
		return smallfile.Read(from, maxSource)
	}
	u, err := url.Parse(from)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", from, err)
	}
	switch u.Scheme {
	case "file":
		return smallfile.Read(u.Path, maxSource)
	case "https":
	default:
		return nil, fmt.Errorf("address %q has scheme %q, want https or file: keys are only believed from where they are known to come", from, u.Scheme)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", from, err)
	}
	client := *s.client
	client.CheckRedirect = stayHTTPS
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", from, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching %s: the answer is %s", from, resp.Status)
	}
	return readBounded(resp.Body, from)
}

// stayHTTPS keeps a redirect from leading to keys that anybody on the way could have written.
func stayHTTPS(req *http.Request, via []*http.Request) error {
	const most = 5
	if req.URL.Scheme != "https" {
		return fmt.Errorf("redirected to %q, want https", req.URL.Scheme+"://"+req.URL.Host)
	}
	if len(via) >= most {
		return fmt.Errorf("redirected more than %d times", most)
	}
	return nil
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSource+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(text) > maxSource {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxSource)
	}
	return text, nil
}

func parseJWKSet(text []byte) ([]Key, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	var keys []Key
	for _, k := range set.Keys {
		if k.Use != "" && k.Use != "sig" {
			continue
		}
		public := k.Public()
		if !public.Valid() || !usable(public.Key) {
			continue // a symmetric key, or a kind nobody signs tokens with
		}
		keys = append(keys, Key{ID: k.KeyID, Algorithm: k.Algorithm, Public: public.Key})
	}
	if len(keys) == 0 {
		return nil, errors.New("the JWK set holds no public signing key")
	}
	return keys, nil
}

func parsePEM(text []byte) ([]Key, error) {
	var keys []Key
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		var public crypto.PublicKey
		switch block.Type {
		case "PUBLIC KEY":
			key, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("public key: %w", err)
			}
			public = key
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate: %w", err)
			}
			public = cert.PublicKey
		default:
			return nil, fmt.Errorf("PEM block is %.32q, want PUBLIC KEY or CERTIFICATE", block.Type)
		}
		if !usable(public) {
			return nil, fmt.Errorf("a key is %T, want RSA of at least 2048 bits, ECDSA or Ed25519", public)
		}
		keys = append(keys, Key{Public: public})
	}
	if len(keys) == 0 {
		return nil, errors.New("no PEM public key")
	}
	return keys, nil
}

// usable leaves out symmetric keys and RSA keys too short to believe.
func usable(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048
	}
	return false
}

// Algorithms are the signature algorithms a key can be used with. An algorithm that the JWK names is the only one.
func (k Key) Algorithms() []jose.SignatureAlgorithm {
	var can []jose.SignatureAlgorithm
	switch public := k.Public.(type) {
	case *ecdsa.PublicKey:
		switch public.Curve.Params().Name {
		case "P-256":
			can = []jose.SignatureAlgorithm{jose.ES256}
		case "P-384":
			can = []jose.SignatureAlgorithm{jose.ES384}
		case "P-521":
			can = []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		can = []jose.SignatureAlgorithm{jose.EdDSA}
	case *rsa.PublicKey:
		can = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	}
	if k.Algorithm == "" {
		return can
	}
	for _, a := range can {
		if string(a) == k.Algorithm {
			return []jose.SignatureAlgorithm{a}
		}
	}
	return nil
}

// Verify checks a JWS of the given algorithm under this key. Signature algorithm and key must fit each other: a public key is
// never taken as the secret of an HMAC, and "none" is no algorithm.
func (k Key) Verify(jws *jose.JSONWebSignature, alg string) ([]byte, error) {
	for _, a := range k.Algorithms() {
		if string(a) == alg {
			return jws.Verify(k.Public)
		}
	}
	return nil, fmt.Errorf("a key of this kind does not sign with %.16q", alg)
}

// AllAlgorithms is what a token may be signed with at all.
func AllAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	}
}
