package cloud

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func ask(t *testing.T, c *Client, url string) (Answer, error) {
	t.Helper()
	return c.Do(t.Context(), "a test", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("body"))
		if err == nil {
			req.Header.Set("Authorization", "Bearer secret-777333")
		}
		return req, err
	}, nil)
}

func client(t *testing.T, timeout time.Duration) *Client {
	t.Helper()
	c, err := New(Bounds{TimeoutMS: int(timeout.Milliseconds())}, 100)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestHostileServers(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	done := make(chan struct{})
	defer close(done)
	for name, c := range map[string]struct {
		serve   http.HandlerFunc
		timeout time.Duration
		want    string
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, 5 * time.Second, "not followed"},
		"oversized": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(strings.Repeat("777333", 50)))
		}, 5 * time.Second, "more than 100"},
		"slow":      {func(http.ResponseWriter, *http.Request) { <-done }, 200 * time.Millisecond, "timeout awaiting"},
		"slow body": {func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); <-done }, 200 * time.Millisecond, "deadline"},
		"broken":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, 3 * time.Second, "502"},
		"hang up":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 3 * time.Second, "EOF"},
		"come back": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(429)
		}, 3 * time.Second, "429"},
		"large heads": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("a", 1<<20))
		}, 3 * time.Second, "exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			h := httptest.NewServer(c.serve)
			defer h.CloseClientConnections()
			_, err := ask(t, client(t, c.timeout), h.URL)
			if err == nil || strings.Contains(err.Error(), "777333") ||
				!strings.Contains(err.Error(), c.want) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
	tls := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer tls.Close()
	if _, err := ask(t, client(t, 20*time.Second), tls.URL); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestTriesAgain(t *testing.T) {
	var n atomic.Int32
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 1:
			w.WriteHeader(503)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			w.WriteHeader(429)
		default:
			w.WriteHeader(404)
		}
	}))
	defer h.Close()
	if a, err := ask(t, client(t, 10*time.Second), h.URL); err != nil || a.Status != 404 || n.Load() != 4 {
		t.Errorf("%+v, %v after %d tries", a, err, n.Load())
	}
}

func TestCheckURL(t *testing.T) {
	for url, good := range map[string]bool{
		"https://kms.example": true, "http://127.0.0.1:80": true, "http://localhost": true, "http://[::1]:1": true,
		"http://169.254.169.254": true,
		"http://kms.example":     false, "http://169.254.169.253": false, "https://u:p@h": false,
		"https://h/?q": false, "ftp://h": false, "": false,
		"https://": false, "http://localhost.example": false, "http://127.0.0.1.example": false,
	} {
		if err := CheckURL("url", url, "169.254.169.254"); (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestCache(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	advance := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	var fetched atomic.Int32
	var fail atomic.Bool
	release := make(chan struct{})
	c := NewCache(clock, func(context.Context) (int, time.Time, error) {
		n := int(fetched.Add(1))
		<-release
		if fail.Load() {
			return 0, time.Time{}, errors.New("out of order")
		}
		return n, clock().Add(time.Hour), nil
	})
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Get(impatient); !errors.Is(err, context.Canceled) {
		t.Errorf("impatient: %v", err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if v, _, err := c.Get(t.Context()); v != 1 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	close(release)
	wg.Wait()
	if fetched.Load() != 1 {
		t.Errorf("%d renewals for many callers", fetched.Load())
	}
	advance(54 * time.Minute)
	if v, _, _ := c.Get(t.Context()); v != 1 {
		t.Error("renewed too early")
	}
	advance(2 * time.Minute)
	fail.Store(true)
	for range 3 { // the old ones are still good, and a failed renewal is not tried again at once
		if v, _, err := c.Get(t.Context()); v != 1 || err != nil {
			t.Errorf("during an outage: %d, %v", v, err)
		}
	}
	if fetched.Load() != 2 {
		t.Errorf("%d renewals, want 2", fetched.Load())
	}
	advance(5 * time.Minute)
	if _, _, err := c.Get(t.Context()); err == nil {
		t.Error("credentials are used after their end")
	}
	fail.Store(false)
	v, serial, err := c.Get(t.Context())
	if err != nil || v != 4 {
		t.Errorf("%d, %v", v, err)
	}
	c.Drop(serial - 1)
	if again, _, _ := c.Get(t.Context()); again != v {
		t.Error("dropped for another's refusal")
	}
	c.Drop(serial)
	if again, _, _ := c.Get(t.Context()); again == v {
		t.Error("what was refused is used again")
	}
}
