package remote

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/rvps"
)

// service is a reference value service that counts what it is asked.
type service struct {
	rvps.UnimplementedReferenceValueProviderServiceServer
	mu     sync.Mutex
	values map[string]string
	asked  int
	bearer []string
	err    error
}

func (s *service) QueryReferenceValue(_ context.Context, r *rvps.ReferenceValueQueryRequest) (*rvps.ReferenceValueQueryResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	if v, ok := s.values[r.GetReferenceValueId()]; ok {
		return &rvps.ReferenceValueQueryResponse{ReferenceValueResults: &v}, nil
	}
	return &rvps.ReferenceValueQueryResponse{}, nil
}

func (s *service) RegisterReferenceValue(ctx context.Context, _ *rvps.ReferenceValueRegisterRequest,
) (*rvps.ReferenceValueRegisterResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bearer = md.Get("authorization")
	return &rvps.ReferenceValueRegisterResponse{}, s.err
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t *testing.T, s *service, change func(*Config)) (*Client, *clock, *grpc.Server) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.MaxSendMsgSize(32 << 20))
	rvps.RegisterReferenceValueProviderServiceServer(srv, s)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var cfg Config
	cfg.Address = "http://" + ln.Addr().String()
	if change != nil {
		change(&cfg)
	}
	k := &clock{t: time.Now()}
	c, err := Open(cfg, k.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, k, srv
}

func TestLookup(t *testing.T) {
	s := &service{values: map[string]string{"a": ` ["1"] `, "null": "null", "bad": "{", "long": `"` + strings.Repeat("x", 2<<20) + `"`}}
	c, k, srv := open(t, s, nil)
	ctx := t.Context()
	lookup := func(want string, asked int) {
		t.Helper()
		v, err := c.Lookup(ctx, "a")
		if err != nil || string(v) != want || s.asked != asked {
			t.Fatalf("got %s %v after %d questions, want %s after %d", v, err, s.asked, want, asked)
		}
	}
	lookup(`["1"]`, 1)
	s.values["a"] = `["2"]`
	lookup(`["1"]`, 1) // believed for a while
	k.advance(defaultCache)
	lookup(`["2"]`, 2)
	k.advance(-time.Hour) // a clock that goes back makes nothing last longer
	lookup(`["2"]`, 3)
	if _, err := c.Register(ctx, []byte(`{"type":"corim","payload":"x"}`), "ann"); err != nil {
		t.Fatal(err)
	}
	lookup(`["2"]`, 4) // a change makes everything be asked anew
	for range 2 {
		if v, err := c.Lookup(ctx, "none"); v != nil || err != nil {
			t.Errorf("a name that is not there: %s %v", v, err)
		}
	}
	if s.asked != 6 {
		t.Errorf("asked %d times, want 6: what is not there is not kept", s.asked)
	}
	if v, err := c.Lookup(ctx, "null"); v != nil || err != nil {
		t.Errorf("null: %s %v", v, err)
	}
	for _, name := range []string{"bad", "long", "", strings.Repeat("n", 600)} {
		if v, err := c.Lookup(ctx, name); err == nil {
			t.Errorf("%.10q: %.20s, want an error", name, v)
		}
	}
	srv.Stop()
	lookup(`["2"]`, 9)
	k.advance(defaultCache)
	if v, err := c.Lookup(ctx, "a"); v != nil || !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("a service that is down: %s %v, want an outage however lately it answered", v, err)
	}
	// It stays an outage on its way through a policy, which must not take it for a value that is absent.
	p, err := rego.Compile("p", "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2} if { not query_reference_value(\"a\") }")
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Begin(rego.Document{Input: map[string]any{}, Lookup: c.Lookup})
	if err != nil {
		t.Fatal(err)
	}
	if v, defined, err := e.Eval(ctx, "trust_claims"); !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("a policy without an answer: %v %v %v, want an outage", v, defined, err)
	}
}

func TestRefusals(t *testing.T) {
	s := &service{err: status.Error(codes.Aborted, "no")}
	c, _, _ := open(t, s, nil)
	if _, err := c.Lookup(t.Context(), "a"); err == nil || errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("a no: %v", err)
	}
	if _, err := c.Register(t.Context(), []byte(`{"type":"sample","payload":"e30="}`), "ann"); err == nil {
		t.Error("a refused message counts as registered")
	}
	if _, err := c.Register(t.Context(), []byte(`{`), "ann"); err == nil {
		t.Error("a broken message is sent")
	}
	if _, err := c.Get(t.Context(), "a"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a no counts as a missing value: %v", err)
	}
	for _, err := range []error{
		func() error { _, err := c.List(t.Context()); return err }(), c.Delete(t.Context(), "a"),
		func() error { _, err := c.DeleteGroup(t.Context(), "a"); return err }(),
	} {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("what the protocol cannot do: %v", err)
		}
	}
	if err := c.Check(t.Context()); err != nil {
		t.Errorf("a service without the health protocol: %v", err)
	}
}

func TestRegister(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret-word\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &service{values: map[string]string{"a": "1"}}
	c, _, _ := open(t, s, func(c *Config) { c.AdminTokenFile, c.CacheMS = file, -1 })
	names, err := c.Register(t.Context(), []byte(`{"version":"0.1.0","type":"sample","payload":"eyJiIjoxLCJhIjoyfQ=="}`), "ann")
	if err != nil || strings.Join(names, " ") != "a b" || len(s.bearer) != 1 || s.bearer[0] != "Bearer secret-word" {
		t.Errorf("register: %v %v, with %v", names, err, s.bearer)
	}
	for range 2 {
		if r, err := c.Get(t.Context(), "a"); err != nil || string(r.Value) != "1" || r.Name != "a" {
			t.Errorf("get: %+v %v", r, err)
		}
	}
	if s.asked != 2 {
		t.Errorf("asked %d times without a cache, want 2", s.asked)
	}
	if _, err := c.Get(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a missing value: %v", err)
	}
	if err := os.WriteFile(file, []byte("two words"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Register(t.Context(), []byte(`{"type":"x"}`), "ann"); err == nil ||
		strings.Contains(err.Error(), "words of") || strings.Contains(err.Error(), "two words") {
		t.Errorf("a broken token: %v, want an error that does not show it", err)
	}
}

// TestCacheBounds: neither number nor size of values lets the cache grow, and an answer from before a change is not kept.
func TestCacheBounds(t *testing.T) {
	k := &clock{t: time.Now()}
	c := newCache(time.Second, k.now)
	asked, epoch := c.begin()
	for i := range 2 * maxEntries {
		c.put(strings.Repeat("n", 1+i%7)+string(rune('a'+i%26))+time.Duration(i).String(), json.RawMessage("1"), asked, epoch)
	}
	if len(c.entries) > maxEntries {
		t.Errorf("%d entries, want at most %d", len(c.entries), maxEntries)
	}
	k.advance(time.Second)
	asked, epoch = c.begin()
	big := json.RawMessage(strings.Repeat("1", maxBytes/2))
	for _, name := range []string{"a", "b", "c", "a"} {
		c.put(name, big, asked, epoch)
	}
	if c.bytes > maxBytes || len(c.entries) > 2 {
		t.Errorf("%d bytes in %d entries, want at most %d", c.bytes, len(c.entries), maxBytes)
	}
	c.forget()
	c.put("late", big, asked, epoch)
	if _, ok := c.get("late"); ok || c.bytes != 0 {
		t.Error("an answer from before a change is kept")
	}
}

func TestConfig(t *testing.T) {
	var c Config
	text := "address = \"https://rvps.example:50003\"\ncache_ms = 1000\n"
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil || c.cache() != time.Second {
		t.Errorf("%+v: %v", c, err)
	}
	c.CacheMS = 60001
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "cache_ms is 60001") {
		t.Errorf("got %v", err)
	}
}

// FuzzValue: an answer is one JSON text that is not null, or refused.
func FuzzValue(f *testing.F) {
	f.Add(` ["1"] `)
	f.Add("null")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := readValue(text)
		if err == nil && v != nil && (!json.Valid(v) || string(v) == "null") {
			t.Fatalf("%q is taken", v)
		}
	})
}
