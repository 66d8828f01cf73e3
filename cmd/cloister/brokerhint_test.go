package main

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// TestBrokerDir: a broker with a certificate of its owner's has no tls.crt in its data folder, a second one of a database no
// admin-token; both are said with what helps.
func TestBrokerDir(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer right" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"type":"https://github.com/confidential-containers/kbs/errors/AdminAccessDenied","detail":"admin access denied: the admin token is wrong"}`))
			return
		}
		_, _ = w.Write([]byte(`[]`))
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	put := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	put("url", srv.URL+"\n")
	list := func(code int, more ...string) string {
		return cli(t, code, "", append([]string{"secret", "list", "--broker-dir", dir}, more...)...)
	}
	contains(t, list(exitRefused), "no admin-token", "hint: give --admin-token FILE")
	put("admin-token", "wrong")
	contains(t, list(exitRefused), "unknown authority", "hint: --kbs-cert FILE")
	cert := put("own.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	contains(t, list(exitRefused, "--kbs-cert", cert), "admin token is wrong", "hint: --admin-token FILE")
	put("admin-token", "right")
	list(exitDone, "--kbs-cert", cert)
}

// TestAddElsewhere: values that the broker forwards are registered, although nobody can be asked how many there are now.
func TestAddElsewhere(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"type":"https://github.com/confidential-containers/kbs/errors/X","detail":"listing reference values: unsupported operation: kept elsewhere"}`))
	}))
	t.Cleanup(srv.Close)
	contains(t, cli(t, exitDone, "", "refvalue", "add", "--kbs", srv.URL, "tpm_pcr09", "ab"), "tpm_pcr09: forwarded to the service")
}
