package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

func TestBothVersions(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, version := range []int{1, 2} {
		b, s := fake(t, version)
		if err := b.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := path(t, "r/t/g")
		if _, err := b.Get(t.Context(), p); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("missing: %v", err)
		}
		if err := b.Delete(t.Context(), p); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("deleting what is missing: %v", err)
		}
		if _, err := b.Versions(t.Context(), p); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("versions of what is missing: %v", err)
		}
		for _, secret := range [][]byte{[]byte("text <&> \u2028 é\x00"), all, {}, bytes.Repeat([]byte{255}, 1<<20),
			bytes.Repeat([]byte{'a'}, resource.MaxSize)} {
			if err := b.Put(t.Context(), p, secret); err != nil {
				t.Fatal(err)
			}
			if got, err := b.Get(t.Context(), p); err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("version %d: %d bytes come back as %d (%v)", version, len(secret), len(got), err)
			}
		}
		if b.Put(t.Context(), p, make([]byte, resource.MaxSize+1)) == nil {
			t.Error("a secret above the limit is taken")
		}
		want := "POST /v1/kv1/r/t/g"
		if version == 2 {
			want = "POST /v1/team/kv2/data/r/t/g"
		}
		if all := strings.Join(s.seen, "\n"); !strings.Contains(all, want) {
			t.Errorf("no %s in\n%s", want, all)
		}
		if err := b.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), p); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("after deleting: %v", err)
		}
	}
}

func TestVersionsOfEngineTwo(t *testing.T) {
	b, s := fake(t, 2)
	p := path(t, "r/t/g")
	for _, secret := range []string{"one", "two", "three"} {
		if err := b.Put(t.Context(), p, []byte(secret)); err != nil {
			t.Fatal(err)
		}
	}
	s.values["2/r/t/g"][1] = nil // destroyed
	got, v, err := b.GetVersion(t.Context(), p, 1)
	if err != nil || string(got) != "one" || v.Number != 1 || v.Size != 3 || v.Time.Day() != 21 {
		t.Errorf("%q %+v, %v", got, v, err)
	}
	for _, n := range []uint64{2, 4} {
		if _, _, err := b.GetVersion(t.Context(), p, n); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("version %d: %v", n, err)
		}
	}
	versions, err := b.Versions(t.Context(), p)
	if err != nil || len(versions) != 2 || versions[0].Number != 3 || versions[1].Number != 1 || versions[0].Size != -1 {
		t.Errorf("%+v, %v", versions, err)
	}
	one, _ := fake(t, 1)
	if err := one.Put(t.Context(), p, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := one.GetVersion(t.Context(), p, 2); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("version 2 of engine 1: %v", err)
	}
}

// TestUpstreamsEntries reads what upstream and people write.
func TestUpstreamsEntries(t *testing.T) {
	b, s := fake(t, 1)
	p := path(t, "r/t/g")
	for entry, want := range map[string]string{
		`{"data":[104,105,0,255]}`:             "hi\x00\xff",
		`{"data":[]}`:                          "",
		`{"data":"plain","other":1}`:           "plain",
		`{"data":""}`:                          "",
		`{"data":{"b":1.50,"a":["<",null]}}`:   `{"a":["<",null],"b":1.50}`,
		`{"data":12345678901234567890123}`:     "12345678901234567890123",
		`{"data":null}`:                        "null",
		`{"data":true}`:                        "true",
		`{"data":"SGVsbG8gV29ybGQ="}`:          "SGVsbG8gV29ybGQ=",
		`{"data":"\u3053\u3093 \ud83d\ude00"}`: "こん 😀",
	} {
		s.values["r/t/g"] = []json.RawMessage{[]byte(entry)}
		if got, err := b.Get(t.Context(), p); err != nil || string(got) != want {
			t.Errorf("%s: got %q, want %q (%v)", entry, got, want, err)
		}
	}
	for _, entry := range []string{
		`{"data":[1,2,256]}`, `{"data":[-1]}`, `{"data":[1.5]}`, `{"data":["777333"]}`, `{"nope":"777333"}`, `[]`, `"777333"`,
	} {
		s.values["r/t/g"] = []json.RawMessage{[]byte(entry)}
		got, err := b.Get(t.Context(), p)
		if err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: got %q, %v", entry, got, err)
		} else if strings.Contains(err.Error(), "777333") || strings.Contains(err.Error(), "256") {
			t.Errorf("%s: the error quotes the secret: %v", entry, err)
		}
	}
}

func TestTokenIsReadAgain(t *testing.T) {
	b, s := fake(t, 1)
	p := path(t, "r/t/g")
	if err := b.Put(t.Context(), p, []byte("x")); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.token = "hvs.renewed"
	s.mu.Unlock()
	_, err := b.Get(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), goodToken) {
		t.Fatalf("got %v, want 403 without the token", err)
	}
	if err := os.WriteFile(b.cfg.TokenFile, []byte("hvs.renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "\n", "two tokens", "a\nb", "tok\x00en", strings.Repeat("a", maxToken+1)} {
		if err := os.WriteFile(b.cfg.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), p); err == nil || len(text) > 2 && strings.Contains(err.Error(), text) {
			t.Errorf("token %.20q: %v", text, err)
		}
	}
	if err := os.WriteFile(b.cfg.TokenFile, []byte("hvs.renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.cfg.TokenFile, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), p); err == nil {
		t.Error("a token file that everybody can change is accepted")
	}
	b.cfg.TokenFile = t.TempDir()
	if _, err := b.Get(t.Context(), p); err == nil {
		t.Error("a directory is taken for a token")
	}
}

func TestCheckFindsTheWrongVersion(t *testing.T) {
	b, _ := fake(t, 1)
	b.cfg.KVVersion = 2
	if err := b.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "kv_version") {
		t.Errorf("got %v", err)
	}
	b.cfg.MountPath = "pki"
	if b.Check(t.Context()) == nil {
		t.Error("another engine is accepted")
	}
	b.cfg.MountPath = "hidden"
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("a token that may not ask: %v", err)
	}
	if err := b.Put(t.Context(), path(t, "r/t/g"), nil); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("writing to a missing engine: %v", err)
	}
}

func TestHostileServers(t *testing.T) {
	secret := "777333secret"
	var elsewhere int
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	for name, h := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"/"+secret, http.StatusTemporaryRedirect)
		},
		"redirect 301": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"/"+secret, http.StatusMovedPermanently)
		},
		"error text": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, secret+r.Header.Get("X-Vault-Token"), http.StatusInternalServerError)
		},
		"sealed":      func(w http.ResponseWriter, r *http.Request) { http.Error(w, secret, http.StatusServiceUnavailable) },
		"not JSON":    func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, secret) },
		"empty":       func(w http.ResponseWriter, r *http.Request) {},
		"null":        func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "null") },
		"list":        func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `["`+secret+`"]`) },
		"no data":     func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"data":{"x":"`+secret+`"}}`) },
		"other type":  func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"data":"`+secret+`"}`) },
		"half":        func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"data":{"data":"`+secret) },
		"two answers": func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"data":{"data":"`+secret+`"}}{}`) },
		"deep":        func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"data":`+strings.Repeat("[", 1<<20)) },
		"cut off": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"data":{"data":"`+secret+`"}}`)
		},
		"huge": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"data":{"data":"`)
			for chunk := strings.Repeat("a", 1<<20); ; {
				if _, err := fmt.Fprint(w, chunk); err != nil {
					return
				}
			}
		},
		"secret too big": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"data":{"data":"%s"}}`, strings.Repeat("a", resource.MaxSize+1))
		},
		"huge header": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X", strings.Repeat("a", 1<<20)) },
		"packed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "\x1f\x8b"+secret)
		},
	} {
		for _, version := range []int{1, 2} {
			b := hostile(t, version, 20*time.Second, h)
			for call, err := range map[string]error{
				"get":      func() error { _, err := b.Get(t.Context(), path(t, "r/t/g")); return err }(),
				"versions": func() error { _, err := b.Versions(t.Context(), path(t, "r/t/g")); return err }(),
			} {
				if err == nil {
					t.Errorf("%s, version %d: %s is accepted", name, version, call)
				} else if s := err.Error(); strings.Contains(s, "777333") || strings.Contains(s, goodToken) || len(s) > 400 {
					t.Errorf("%s, version %d: the error of %s shows too much: %.500s", name, version, call, s)
				} else if errors.Is(err, store.ErrNotFound) {
					t.Errorf("%s, version %d: %s is taken for a missing resource: %v", name, version, call, err)
				}
			}
		}
	}
	if elsewhere > 0 {
		t.Errorf("%d redirects were followed", elsewhere)
	}
}

func TestSlowServers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"no answer": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drops": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := fmt.Fprint(w, " "); err != nil || r.Context().Err() != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
		},
	} {
		b := hostile(t, 1, 200*time.Millisecond, h)
		if _, err := b.Get(t.Context(), path(t, "r/t/g")); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
	b := hostile(t, 1, 30*time.Second, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Get(ctx, path(t, "r/t/g")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the time of the request does not count: %v", err)
	}
}

func TestTLS(t *testing.T) {
	s := &server{token: goodToken, values: map[string][]json.RawMessage{"r/t/g": {[]byte(`{"data":"x"}`)}}}
	h := httptest.NewTLSServer(s)
	defer h.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{URL: h.URL, TokenFile: tokenFile(t, goodToken), MountPath: "kv1", CACerts: []string{ca}}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(t.Context(), path(t, "r/t/g")); err != nil || string(got) != "x" {
		t.Fatalf("%q, %v", got, err)
	}
	before := len(s.seen)
	c.CACerts = nil
	if b, err = New(c); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), path(t, "r/t/g")); err == nil || len(s.seen) != before {
		t.Fatalf("a server with an unknown certificate is asked: %v", err)
	}
	for _, file := range []string{c.TokenFile, "/nonexistent"} {
		c.CACerts = []string{file}
		if _, err := New(c); err == nil || strings.Contains(err.Error(), goodToken) {
			t.Errorf("ca_certs %s: %v", file, err)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{URL: "https://vault.example:8200", TokenFile: "/run/token"}
	for name, change := range map[string]func(c *Config){
		"plain":     func(c *Config) {},
		"loopback":  func(c *Config) { c.URL = "http://127.0.0.1:8200/" },
		"six":       func(c *Config) { c.URL = "http://[::1]:8200" },
		"asked for": func(c *Config) { c.URL, c.InsecureHTTP = "http://vault.example", true },
		"deep":      func(c *Config) { c.MountPath, c.Namespace = "a/b-c", "team/one/" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(c *Config){
		"clear":       func(c *Config) { c.URL = "http://vault.example" },
		"clear trick": func(c *Config) { c.URL = "http://localhost.example" },
		"no URL":      func(c *Config) { c.URL = "" },
		"scheme":      func(c *Config) { c.URL = "unix:///x" },
		"path":        func(c *Config) { c.URL += "/v1" },
		"user":        func(c *Config) { c.URL = "https://a:SECRET@vault" },
		"query":       func(c *Config) { c.URL += "?a" },
		"token":       func(c *Config) { c.TokenFile = "" },
		"mount":       func(c *Config) { c.MountPath = "a/../sys" },
		"mount slash": func(c *Config) { c.MountPath = "/a" },
		"mount query": func(c *Config) { c.MountPath = "a?b" },
		"version":     func(c *Config) { c.KVVersion = 3 },
		"timeout":     func(c *Config) { c.TimeoutMS = -1 },
		"long":        func(c *Config) { c.TimeoutMS = 1e6 },
		"namespace":   func(c *Config) { c.Namespace = "a\r\nX: y" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
