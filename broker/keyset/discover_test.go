package keyset

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestIssuer reads keys by way of discovery documents, honest and other ones.
func TestIssuer(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var doc func(base string) string
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprint(w, doc(srv.URL))
		case "/keys":
			if err := json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "one"}}}); err != nil {
				t.Error(err)
			}
		default:
			http.NotFound(w, r)
		}
	})
	srv.StartTLS()
	defer srv.Close()
	for _, tc := range []struct {
		name string
		src  Source
		doc  string
		says string
	}{
		{"issuer", Source{Issuer: srv.URL}, `{"issuer":"BASE","jwks_uri":"BASE/keys"}`, ""},
		{"set by discovery", Source{JWKSet: srv.URL}, `{"jwks_uri":"BASE/keys"}`, ""},
		{"of another issuer", Source{Issuer: srv.URL}, `{"issuer":"https://other.example","jwks_uri":"BASE/keys"}`, "has issuer"},
		{"of no issuer", Source{Issuer: srv.URL}, `{"jwks_uri":"BASE/keys"}`, "has issuer"},
		{"keys over HTTP", Source{Issuer: srv.URL}, `{"issuer":"BASE","jwks_uri":"http://127.0.0.1/keys"}`, "want an https:// address"},
		{"keys in a file", Source{Issuer: srv.URL}, `{"issuer":"BASE","jwks_uri":"/etc/passwd"}`, "want an https:// address"},
		{"no keys", Source{Issuer: srv.URL}, `{"issuer":"BASE","jwks_uri":"BASE/none"}`, "404"},
		{"not JSON", Source{Issuer: srv.URL}, `<html>`, "jwks_uri"},
		{"plain HTTP", Source{Issuer: strings.Replace(srv.URL, "https", "http", 1)}, "", "https:// address"},
		{"two sources", Source{Issuer: srv.URL, JWKSet: srv.URL}, "", "want one of them"},
	} {
		doc = func(base string) string { return strings.ReplaceAll(tc.doc, "BASE", base) }
		set, err := Open(t.Context(), srv.Client(), tc.src)
		switch {
		case tc.says == "" && (err != nil || len(set.Find("one")) != 1):
			t.Errorf("%s: %v", tc.name, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.says)
		}
	}
}

// TestRefresher: whoever asks, the source is read once in a while, and a reader that gave up does not count.
func TestRefresher(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "set.json")
	write := func(id string) {
		t.Helper()
		raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: id}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	set, err := Open(t.Context(), nil, Source{JWKSet: file})
	if err != nil {
		t.Fatal(err)
	}
	var now atomic.Int64
	now.Store(time.Now().Unix())
	r := NewRefresher(set, time.Minute, func() time.Time { return time.Unix(now.Load(), 0) })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_ = r.Refresh(gone)
	write("two")
	if err := r.Refresh(t.Context()); err != nil || len(set.Find("two")) != 1 {
		t.Errorf("the first time: %v", err)
	}
	write("three")
	if err := r.Refresh(t.Context()); err != nil || len(set.Find("three")) != 0 {
		t.Errorf("right after: %v, want the keys as they were", err)
	}
	now.Add(60)
	if err := r.Refresh(t.Context()); err != nil || len(set.Find("three")) != 1 {
		t.Errorf("a minute later: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	now.Add(60)
	for range 2 {
		if err := r.Refresh(t.Context()); err == nil || len(set.Find("three")) != 1 {
			t.Errorf("without a source: %v, want an error, and the keys as they were", err)
		}
	}
}
