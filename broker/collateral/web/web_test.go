package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
)

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestGet(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/here", http.StatusFound)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=90")
		fmt.Fprint(w, r.Method, r.URL.Path)
	})
	for _, path := range []string{"/here", "/moved"} {
		res, err := New(Options{}).Get(context.Background(), url+path)
		if err != nil || string(res.Body) != "GET/here" || res.MaxAge != 90*time.Second {
			t.Errorf("%s: got %+v, %v", path, res, err)
		}
	}
}

// TestFaults: what a server can do wrong, what is said, and whether the server as a whole is to be left alone.
func TestFaults(t *testing.T) {
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "stolen") })
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		says string
		busy bool
		wait time.Duration
	}{
		"429 in seconds": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "37")
			w.WriteHeader(429)
		}, "status is 429 Too Many Requests, expected 200 (asks to wait 37s)", true, 37 * time.Second},
		"503 with a date": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "Sun, 01 Mar 2026 12:00:00 GMT")
			w.Header().Set("Retry-After", "Sun, 01 Mar 2026 12:02:00 GMT")
			w.WriteHeader(503)
		}, "status is 503", true, 2 * time.Minute},
		"503 with nonsense": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "-5")
			w.WriteHeader(503)
		}, "status is 503", true, 0},
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, "status is 500", false, 0},
		"404": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, "not found", false, 0},
		"204": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "status is 204", false, 0},
		"truncated": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "half")
		}, "reading the answer after 4 bytes: unexpected EOF", false, 0},
		"oversized": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 2000)) },
			"the answer has more than 1000 bytes", false, 0},
		"other host": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other, http.StatusFound) },
			"expected to stay on", true, 0},
		"loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) },
			"more than 3 redirections", true, 0},
		"slow head": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}, "imeout", true, 0},
		"slow body": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "begin")
			w.(http.Flusher).Flush()
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}, "reading the answer after 5 bytes", true, 0},
		"hang up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			url := serve(t, tc.h)
			res, err := New(Options{Timeout: 300 * time.Millisecond, MaxBody: 1000}).Get(context.Background(), url)
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), url) {
				t.Fatalf("got %v, error %v; want one with %q and the address", res, err, tc.says)
			}
			var busy *collateral.BusyError
			if errors.As(err, &busy) != tc.busy || busy != nil && busy.Wait != tc.wait {
				t.Errorf("busy is %+v, want %v with %s", busy, tc.busy, tc.wait)
			}
			if errors.Is(err, collateral.ErrNotFound) != (name == "404") {
				t.Errorf("not found is %v", err)
			}
		})
	}
}

func TestOutageAndCancelling(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	url := s.URL
	s.Close()
	_, err := New(Options{}).Get(context.Background(), url)
	var busy *collateral.BusyError
	if !errors.As(err, &busy) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a server that is down: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = New(Options{}).Get(ctx, url); err == nil || errors.As(err, &busy) {
		t.Errorf("the caller's own hurry: %v", err)
	}
}

func TestUnknownCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	if _, err := New(Options{}).Get(context.Background(), s.URL); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

func TestMaxAge(t *testing.T) {
	for _, tc := range []struct {
		control, expires string
		want             time.Duration
	}{
		{"", "", 0}, {"max-age=60", "", time.Minute}, {"private, Max-Age=\"60\"", "", time.Minute}, {"no-store", "", 1}, {"no-cache", "", 1},
		{"max-age=0", "", 1}, {"max-age=-1", "", 0}, {"max-age=99999999999999999999", "", 0},
		{"", "Sun, 01 Mar 2026 13:00:00 GMT", time.Hour}, {"", "0", 0}, {"", "Sun, 01 Mar 2026 11:00:00 GMT", 1},
	} {
		h := http.Header{"Date": {"Sun, 01 Mar 2026 12:00:00 GMT"}, "Cache-Control": {tc.control}, "Expires": {tc.expires}}
		if got := maxAge(h); got != tc.want {
			t.Errorf("%q, %q: %s, want %s", tc.control, tc.expires, got, tc.want)
		}
	}
}

func TestBase(t *testing.T) {
	for _, bad := range []string{"", "x", "http://example.com", "https://u:p@h", "https://h/?q", "https://h/#f", "file:///x", "https://"} {
		if got, err := Base(bad); err == nil {
			t.Errorf("%q is accepted as %q", bad, got)
		}
	}
	if got, err := Base("https://h/p/"); err != nil || got != "https://h/p" {
		t.Errorf("got %q, %v", got, err)
	}
}
