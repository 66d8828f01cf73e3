package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/keyset"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certify makes a certificate for a key, self-signed when there is no parent.
func certify(t *testing.T, name string, public crypto.PublicKey, parent *x509.Certificate, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func sign(t *testing.T, key any, alg jose.SignatureAlgorithm, claims map[string]any, headers map[string]any) string {
	t.Helper()
	opts := &jose.SignerOptions{}
	for k, v := range headers {
		opts = opts.WithHeader(jose.HeaderKey(k), v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func good(change map[string]any) map[string]any {
	claims := map[string]any{"exp": now.Add(time.Minute).Unix(), "submods": map[string]any{}}
	for k, v := range change {
		claims[k] = v
	}
	return claims
}

func TestTrust(t *testing.T) {
	rootKey, key, otherKey := newKey(t), newKey(t), newKey(t)
	root := certify(t, "root", &rootKey.PublicKey, nil, rootKey)
	leaf := certify(t, "as", &key.PublicKey, root, rootKey)
	strayKey := newKey(t)
	stray := certify(t, "stray", &otherKey.PublicKey, certify(t, "root", &strayKey.PublicKey, nil, strayKey), strayKey)
	roots := x509.NewCertPool()
	roots.AddCert(root)

	set := filepath.Join(t.TempDir(), "set.json")
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &key.PublicKey, KeyID: "one", Algorithm: "ES256", Use: "sig"}, {Key: []byte("a symmetric key is nobody's identity"), KeyID: "hmac"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(set, text, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := keyset.Open(t.Context(), nil, keyset.Source{JWKSet: set})
	if err != nil {
		t.Fatal(err)
	}
	jwk := func(key *ecdsa.PrivateKey, certs ...*x509.Certificate) map[string]any {
		return map[string]any{"jwk": jose.JSONWebKey{Key: &key.PublicKey, Algorithm: "ES256", Certificates: certs}}
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":9999999999}`)) + "."
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		token string
		trust Trust
		says  string // "" means accepted
	}{
		{"certificate chain", sign(t, key, jose.ES256, good(nil), jwk(key, leaf)), Trust{Roots: roots}, ""},
		{"key id", sign(t, key, jose.ES256, good(nil), map[string]any{"kid": "one"}), Trust{Keys: keys}, ""},
		{"key in the header, insecure", sign(t, otherKey, jose.ES256, good(nil), jwk(otherKey)), Trust{InsecureHeaderJWK: true}, ""},
		{"key in the header", sign(t, otherKey, jose.ES256, good(nil), jwk(otherKey)), Trust{Roots: roots}, "without certificates"},
		{"key in the header, no roots", sign(t, key, jose.ES256, good(nil), jwk(key, leaf)), Trust{}, "no certificates to check"},
		{"chain of another root", sign(t, otherKey, jose.ES256, good(nil), jwk(otherKey, stray)), Trust{Roots: roots}, "no trusted one"},
		{"key in the header and in a set", sign(t, key, jose.ES256, good(nil), jwk(key)), Trust{Keys: keys}, ""},
		{"key in the header and in no set", sign(t, otherKey, jose.ES256, good(nil), jwk(otherKey)), Trust{Keys: keys}, "no certificates to check"},
		{"unknown key id", sign(t, key, jose.ES256, good(nil), map[string]any{"kid": "two"}), Trust{Keys: keys}, `"two" is in none`},
		{"symmetric key of the set", sign(t, []byte("a symmetric key is nobody's identity"), jose.HS256, good(nil), map[string]any{"kid": "hmac"}), Trust{Keys: keys}, "algorithm"},
		{"public key as HMAC secret", sign(t, point, jose.HS256, good(nil), map[string]any{"kid": "one"}), Trust{Keys: keys}, "algorithm"},
		{"signature of another key", sign(t, otherKey, jose.ES256, good(nil), map[string]any{"kid": "one"}), Trust{Keys: keys}, "does not hold"},
		{"alg none", none, Trust{Keys: keys, Roots: roots, InsecureHeaderJWK: true}, "algorithm"},
		{"expired", sign(t, key, jose.ES256, good(map[string]any{"exp": now.Add(-2 * time.Minute).Unix()}), map[string]any{"kid": "one"}), Trust{Keys: keys}, "expired"},
		{"expired within the leeway", sign(t, key, jose.ES256, good(map[string]any{"exp": now.Add(-30 * time.Second).Unix()}), map[string]any{"kid": "one"}), Trust{Keys: keys}, ""},
		{"no expiry", sign(t, key, jose.ES256, map[string]any{}, map[string]any{"kid": "one"}), Trust{Keys: keys}, "no exp"},
		{"not yet good", sign(t, key, jose.ES256, good(map[string]any{"nbf": now.Add(time.Hour).Unix()}), map[string]any{"kid": "one"}), Trust{Keys: keys}, "not good before"},
		{"nothing trusted", sign(t, key, jose.ES256, good(nil), nil), Trust{}, "no JWK set"},
		{"garbage", "a.b", Trust{Keys: keys}, "not valid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.trust.Now = func() time.Time { return now }
			claims, err := tc.trust.Verify(tc.token)
			if tc.says == "" {
				if err != nil || claims["submods"] == nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("the error is %v, want one that says %q", err, tc.says)
			}
		})
	}
}

// TestTrustOfForeignLeaf gives a key the certificate of another one.
func TestTrustOfForeignLeaf(t *testing.T) {
	rootKey, key, thief := newKey(t), newKey(t), newKey(t)
	root := certify(t, "root", &rootKey.PublicKey, nil, rootKey)
	leaf := certify(t, "as", &key.PublicKey, root, rootKey)
	roots := x509.NewCertPool()
	roots.AddCert(root)
	raw, err := json.Marshal(jose.JSONWebKey{Key: &thief.PublicKey, Algorithm: "ES256"})
	if err != nil {
		t.Fatal(err)
	}
	var header map[string]any
	if err := json.Unmarshal(raw, &header); err != nil {
		t.Fatal(err)
	}
	header["x5c"] = []string{base64.StdEncoding.EncodeToString(leaf.Raw)}
	trust := Trust{Roots: roots, Now: func() time.Time { return now }}
	if _, err := trust.Verify(sign(t, thief, jose.ES256, good(nil), map[string]any{"jwk": header})); !errors.Is(err, ErrInvalid) {
		t.Errorf("a stolen certificate is accepted: %v", err)
	}
}

func TestKeySources(t *testing.T) {
	key := newKey(t)
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "one"}}})
	if err != nil {
		t.Fatal(err)
	}
	broken := false
	var base string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case broken:
			http.Error(w, "down", http.StatusBadGateway)
		case r.URL.Path == "/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"jwks_uri": base + "/keys"})
		case r.URL.Path == "/keys":
			_, _ = w.Write(text)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	base = srv.URL
	set, err := keyset.Open(t.Context(), srv.Client(), keyset.Source{JWKSet: srv.URL})
	if err != nil || len(set.Find("one")) != 1 {
		t.Fatalf("discovery: %v, %v", set, err)
	}
	broken = true
	if err := set.Reload(t.Context()); err == nil || len(set.Find("one")) != 1 {
		t.Errorf("an outage: error %v, keys %v; want an error and the old keys", err, set.Keys())
	}
	for _, bad := range []keyset.Source{{}, {JWKSet: "http://example.invalid/keys"}, {PEM: "/does/not/exist"}, {JWKSet: srv.URL}, {JWKSet: "a", PEM: "b"}} {
		if _, err := keyset.Open(t.Context(), srv.Client(), bad); err == nil {
			t.Errorf("source %+v is accepted", bad)
		}
	}
}
