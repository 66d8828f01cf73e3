package cloudtest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Server is what the fakes have in common. Its fields are to be changed through Set.
type Server struct {
	// URL is where it is; CA the file with its authority.
	URL, CA string

	mu sync.Mutex
	// Clock is the time of the service; nil is that of the machine.
	Clock func() time.Time
	// Hook answers requests in place of the service when it returns true.
	Hook func(w http.ResponseWriter, r *http.Request) bool
	// Calls are the actions or paths that were asked for.
	Calls []string

	handler http.Handler
}

// Set changes a fake while it runs.
func (s *Server) Set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Asked are the calls so far.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.Calls...)
}

func (s *Server) now() time.Time {
	if s.Clock != nil {
		return s.Clock()
	}
	return time.Now()
}

// start serves until the test ends; secure with TLS.
func (s *Server) start(t testing.TB, secure bool, serve func(w http.ResponseWriter, r *http.Request, body []byte)) {
	t.Helper()
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		hook := s.Hook
		s.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
		serve(w, r, body)
	})
	h := httptest.NewUnstartedServer(s.handler)
	if !secure {
		h.Start()
	} else {
		h.StartTLS()
		s.CA = File(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})))
	}
	s.URL = h.URL
	t.Cleanup(h.Close)
}

// Plain serves the same without TLS, as metadata services do.
func (s *Server) Plain(t testing.TB) string {
	h := httptest.NewServer(s.handler)
	t.Cleanup(h.Close)
	return h.URL
}

// File writes a file of mode 0600 and returns its path.
func File(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func answer(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that went away is no error of the fake
}

// gcm is a key of a fake key management service.
type gcm struct{ cipher.AEAD }

func newGCM(t testing.TB) gcm {
	t.Helper()
	key := make([]byte, 32)
	_, err := rand.Read(key)
	block, err2 := aes.NewCipher(key)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm{a}
}

func (g gcm) encrypt(plain []byte, aad string) []byte { return g.Seal(nil, nil, plain, []byte(aad)) }

func (g gcm) decrypt(sealed []byte, aad string) ([]byte, error) {
	return g.Open(nil, nil, sealed, []byte(aad))
}
