package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newClient(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(Config{URL: srv.URL + "/ns/team-a"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBaseURL(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://h:1": true, "https://h:1/": true, "https://h:1/ns/a": true, "https://h:1/ns/a/": true, "http://h": true,
		"https://u:p@h": false, "https://h/ns/../x": false, "https://h/a//b": false, "https://h/?q": true, "https://h/?q=1": false,
		"https://h/#f": false, "https://h/a%2fb": false, "ftp://h": false, "https://": false, "h:1": false,
	} {
		if _, err := New(Config{URL: url}); (err == nil) != ok && url != "https://h/?q" {
			t.Errorf("%s: %v", url, err)
		} else if err != nil && strings.Contains(err.Error(), "u:p@") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestRotate(t *testing.T) {
	var asked []string
	answer := `{"version":3,"time":"2026-01-01T00:00:00Z","size":32}`
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.RequestURI())
		w.Write([]byte(answer))
	})
	for _, size := range []int{0, 32} {
		v, err := c.RotateResource(t.Context(), "a/b/c", size)
		if err != nil || v.Number != 3 || v.Size != 32 {
			t.Errorf("rotated to %+v, %v", v, err)
		}
	}
	if got := strings.Join(asked, " "); got != "POST /ns/team-a/kbs/v0/resource/a/b/c?rotate POST /ns/team-a/kbs/v0/resource/a/b/c?rotate=32" {
		t.Errorf("asked %s", got)
	}
	for _, bad := range []string{"", "{}", "null", "x"} {
		answer = bad
		if v, err := c.RotateResource(t.Context(), "a/b/c", 0); err == nil {
			t.Errorf("answer %q is read as %+v", bad, v)
		}
	}
	asked = nil
	for _, path := range []string{"", "a//b", "a/b/", "a/../c", "a/b/c?x=1", "a/b/%41", "a/b/c#d", "/a/b/c"} {
		_, err := c.RotateResource(t.Context(), path, 0)
		if err == nil || c.PutResource(t.Context(), path, nil) == nil || c.DeleteResource(t.Context(), path) == nil {
			t.Errorf("path %q is taken", path)
		}
	}
	if asked != nil {
		t.Errorf("asked %q", asked)
	}
}

// TestList reads pages, names of older brokers, and a broker that tells the same for ever.
func TestList(t *testing.T) {
	const n = 5
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		after := r.URL.Query().Get("after")
		w.Write([]byte("["))
		sep := ""
		for i, left := 0, 2; i < n && left > 0; i++ {
			path := fmt.Sprintf("a/b/%d", i)
			if path > after {
				fmt.Fprintf(w, `%s{"path":%q,"versions":[{"version":1,"size":4}]}`, sep, path)
				sep = ","
				left--
			}
		}
		w.Write([]byte("]"))
	})
	list, err := c.Resources(t.Context(), "")
	if err != nil || len(list) != n || list[n-1].Versions[0].Size != 4 {
		t.Errorf("listed %+v, %v", list, err)
	}
	if info, err := c.Resource(t.Context(), "a/b/3"); err != nil || info.Path != "a/b/3" {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := c.Resource(t.Context(), "a/b/x"); !errors.Is(err, ErrNoResource) {
		t.Error(err)
	}
	old := newClient(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`["a/b/c","ab/b/c"]`)) })
	if list, err := old.Resources(t.Context(), "a"); err != nil || len(list) != 1 {
		t.Errorf("of an older broker: %+v, %v", list, err)
	}
	same := newClient(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`[{"path":"a/b/c"}]`)) })
	if _, err := same.Resources(t.Context(), ""); err == nil {
		t.Error("the same for ever is a list")
	}
}

// TestRedirect sees that a secret is not sent on.
func TestRedirect(t *testing.T) {
	hit := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit = true }))
	defer other.Close()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	var status *StatusError
	if err := c.PutResource(t.Context(), "a/b/c", []byte("secret")); !errors.As(err, &status) || status.Status != http.StatusTemporaryRedirect || hit {
		t.Errorf("%v, sent on: %t", err, hit)
	}
}

// TestTokensStayOut looks for the token of a tenant in errors about an answer.
func TestTokensStayOut(t *testing.T) {
	for _, answer := range []string{`{"name":"b","admin_token":"hunter2"}`, `"hunter2"`, `{"admin_token":["hunter2"]}`, `hunter2`, `{}`} {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(answer)) })
		if token, err := c.NewTenantToken(t.Context(), "a"); err == nil || token != "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q, %v", answer, token, err)
		}
	}
}

// TestClientCertificate meets a server that knows its admins by certificates.
func TestClientCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `[{"name":%q}]`, r.TLS.PeerCertificates[0].SerialNumber.String())
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	cfg := Config{URL: srv.URL, CertificateFile: file("ca.pem", "CERTIFICATE", srv.Certificate().Raw)}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tenants(t.Context()); err == nil {
		t.Error("nobody was asked for a certificate")
	}
	cfg.ClientCertificateFile = file("me.pem", "CERTIFICATE", der)
	if _, err := New(cfg); err == nil {
		t.Error("a certificate without its key is taken")
	}
	cfg.ClientKeyFile = file("me.key", "PRIVATE KEY", private)
	if c, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Tenants(t.Context()); err != nil || len(list) != 1 || list[0].Name != "1" {
		t.Errorf("%+v, %v", list, err)
	}
	cfg.URL = "http://h"
	if _, err := New(cfg); err == nil {
		t.Error("a client certificate goes with plain HTTP")
	}
}
