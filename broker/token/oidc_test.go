package token

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/keyset"
)

// TestDiscovery: who knows only the address of a service can check its tokens.
func TestDiscovery(t *testing.T) {
	s, err := NewSigner(time.Now, 0, SigningKey{Private: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+DiscoveryPath, OIDC(""))
	mux.HandleFunc("GET "+KeySetPath, func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(s.KeySet()); err != nil {
			t.Error(err)
		}
	})
	srv := httptest.NewTLSServer(mux)
	defer srv.Close()
	keys, err := keyset.Open(t.Context(), srv.Client(), keyset.Source{Issuer: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	compact, err := s.Issue("id", map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	trust := &Trust{Keys: keys, Now: time.Now}
	if _, err := (Any{Others: trust}).Verify(compact); err != nil {
		t.Errorf("a token of the service: %v", err)
	}
	trust.Issuers = []string{"x", Issuer}
	if _, err := trust.Verify(compact); err != nil {
		t.Errorf("of one of two issuers: %v", err)
	}
	trust.Issuers = []string{"x"}
	if _, err := trust.Verify(compact); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "its iss is") {
		t.Errorf("of another issuer: %v", err)
	}
}

func TestDiscoveryDocument(t *testing.T) {
	for _, tc := range []struct{ issuer, host, want string }{
		{"https://as.example/", "evil.example", "https://as.example"},
		{"", "as.example:8443", "http://as.example:8443"},
		{"", "[::1]:8443", "http://[::1]:8443"},
		{"", "", ""},
		{"", "as.example/path", ""},
		{"", "user@as.example", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, DiscoveryPath, nil)
		r.Host = tc.host
		w := httptest.NewRecorder()
		OIDC(tc.issuer).ServeHTTP(w, r)
		var d Discovery
		if tc.want == "" {
			if w.Code != http.StatusBadRequest {
				t.Errorf("host %q: %d %s, want 400", tc.host, w.Code, w.Body)
			}
			continue
		}
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || d.Issuer != tc.want || d.JWKSURI != tc.want+KeySetPath ||
			d.Algorithms[0] != "ES256" {
			t.Errorf("host %q: %s %v", tc.host, w.Body, err)
		}
	}
}

// TestAny: own tokens, those of the attestation service, those of others; nobody else's.
func TestAny(t *testing.T) {
	key := map[string]*ecdsa.PrivateKey{}
	signers := map[string]*Signer{}
	for _, name := range []string{"own", "service", "other", "stranger"} {
		key[name] = newKey(t)
		s, err := NewSigner(time.Now, 0, SigningKey{Private: key[name]})
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = s
	}
	trust := func(name string) *Trust {
		raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key[name].PublicKey}}})
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw) }))
		defer srv.Close()
		keys, err := keyset.Open(t.Context(), srv.Client(), keyset.Source{JWKSet: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		return &Trust{Keys: keys, Now: time.Now}
	}
	for _, tc := range []struct {
		any     Any
		accepts string
	}{
		{Any{}, ""},
		{Any{Own: signers["own"]}, "own"},
		{Any{Service: trust("service")}, "service"},
		{Any{Own: signers["own"], Service: trust("service"), Others: trust("other")}, "own service other"},
	} {
		for name, s := range signers {
			compact, err := s.Issue("id", map[string]any{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = tc.any.Verify(compact)
			if want := strings.Contains(tc.accepts, name); (err == nil) != want || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("who accepts %q, a token of %s: %v", tc.accepts, name, err)
			}
		}
	}
	if set := (Any{}).KeySet(); set["keys"] == nil || len(set["keys"]) != 0 {
		t.Errorf("keys of who signs nothing: %v", set)
	}
}
