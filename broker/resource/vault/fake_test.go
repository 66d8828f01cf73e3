package vault

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/resource"
)

const goodToken = "hvs.good-token"

// server is as much of a Vault as a client sees of its key-value engines: version 1 at "kv1", version 2 at "team/kv2".
type server struct {
	mu     sync.Mutex
	token  string
	values map[string][]json.RawMessage
	seen   []string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r.Method+" "+r.URL.RequestURI())
	if r.Header.Get("X-Vault-Token") != s.token || r.Header.Get("X-Vault-Request") != "true" {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"errors":["permission denied for %s"]}`, r.Header.Get("X-Vault-Token"))
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if name, ok := strings.CutPrefix(path, "sys/internal/ui/mounts/"); ok {
		switch name {
		case "kv1":
			fmt.Fprint(w, `{"data":{"type":"kv","options":{"version":"1"}}}`)
		case "team/kv2":
			fmt.Fprint(w, `{"data":{"type":"kv","options":{"version":"2"}}}`)
		case "pki":
			fmt.Fprint(w, `{"data":{"type":"pki","options":null}}`)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
		return
	}
	if key, ok := strings.CutPrefix(path, "kv1/"); ok {
		s.one(w, r, key)
		return
	}
	part, key, _ := strings.Cut(strings.TrimPrefix(path, "team/kv2/"), "/")
	if !strings.HasPrefix(path, "team/kv2/") || part != "data" && part != "metadata" {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[]}`)
		return
	}
	s.two(w, r, part, "2/"+key)
}

func (s *server) one(w http.ResponseWriter, r *http.Request, key string) {
	switch r.Method {
	case http.MethodGet:
		v := s.values[key]
		if v == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"lease_duration":2764800,"data":%s}`, v[0])
	case http.MethodPost:
		body, _ := io.ReadAll(r.Body)
		s.values[key] = []json.RawMessage{body}
		w.WriteHeader(http.StatusNoContent)
	case http.MethodDelete:
		delete(s.values, key)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *server) two(w http.ResponseWriter, r *http.Request, part, key string) {
	v := s.values[key]
	if v == nil && r.Method == http.MethodGet {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	switch {
	case r.Method == http.MethodGet && part == "data":
		n := len(v)
		if t := r.URL.Query().Get("version"); t != "" {
			n, _ = strconv.Atoi(t)
		}
		if n < 1 || n > len(v) || v[n-1] == nil {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"data":{"data":null,"metadata":{"deletion_time":"2026-01-01T00:00:00Z"}}}`)
			return
		}
		fmt.Fprintf(w, `{"data":{"data":%s,"metadata":{"version":%d,"created_time":"2026-11-2%dT00:00:00Z"}}}`, v[n-1], n, n)
	case r.Method == http.MethodGet:
		versions := map[string]any{}
		for i, value := range v {
			m := map[string]any{"created_time": fmt.Sprintf("2026-11-2%dT00:00:00Z", i+1), "deletion_time": "", "destroyed": false}
			if value == nil {
				m["destroyed"] = true
			}
			versions[strconv.Itoa(i+1)] = m
		}
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"versions": versions}})
	case r.Method == http.MethodPost && part == "data":
		var m struct{ Data json.RawMessage }
		if json.NewDecoder(r.Body).Decode(&m) != nil || m.Data == nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.values[key] = append(v, m.Data)
		fmt.Fprintf(w, `{"data":{"version":%d}}`, len(v)+1)
	case r.Method == http.MethodDelete && part == "metadata":
		delete(s.values, key)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func tokenFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func fake(t *testing.T, version int) (*Backend, *server) {
	t.Helper()
	s := &server{token: goodToken, values: map[string][]json.RawMessage{}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	mount := "kv1"
	if version == 2 {
		mount = "team/kv2"
	}
	b, err := New(Config{URL: h.URL, TokenFile: tokenFile(t, goodToken+"\n"), MountPath: mount, KVVersion: version, TimeoutMS: 5000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.http.CloseIdleConnections)
	return b, s
}

// hostile is a Backend whose server is h.
func hostile(t *testing.T, version int, timeout time.Duration, h http.HandlerFunc) *Backend {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	b, err := New(Config{URL: s.URL, TokenFile: tokenFile(t, goodToken), KVVersion: version, TimeoutMS: int(timeout.Milliseconds())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.http.CloseIdleConnections)
	return b
}

func path(t *testing.T, text string) resource.Path {
	t.Helper()
	p, err := resource.ParsePath(resource.SplitPath(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
