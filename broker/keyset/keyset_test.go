package keyset

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// TestRedirectStaysHTTPS has an HTTPS address that redirects to the keys of whoever listens on the way.
func TestRedirectStaysHTTPS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey}}}); err != nil {
			t.Error(err)
		}
	}))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	defer secure.Close()
	if _, err := Open(t.Context(), secure.Client(), Source{JWKSet: secure.URL}); err == nil || !strings.Contains(err.Error(), "want https") {
		t.Errorf("keys by way of a redirect to plain HTTP: %v, want a refusal", err)
	}
}
