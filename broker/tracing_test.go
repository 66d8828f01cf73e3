package broker

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/broker/config"
)

// receiver is an OTLP collector in this process.
type receiver struct {
	url string

	mu    sync.Mutex
	spans []*otlp.Span
	text  strings.Builder
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	c := &receiver{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := &collector.ExportTraceServiceRequest{}
		in, err := gzip.NewReader(r.Body)
		if err == nil {
			var raw []byte
			if raw, err = io.ReadAll(io.LimitReader(in, 4<<20)); err == nil {
				err = proto.Unmarshal(raw, body)
			}
		}
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.text.WriteString(prototext.Format(body))
		for _, r := range body.GetResourceSpans() {
			for _, s := range r.GetScopeSpans() {
				c.spans = append(c.spans, s.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(srv.Close)
	c.url = srv.URL + "/v1/traces"
	return c
}

// tree is the names of the spans below a request, with their parents, in the order they began.
func (c *receiver) tree(name string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	byID, out := map[string]*otlp.Span{}, []string{}
	for _, s := range c.spans {
		byID[string(s.GetSpanId())] = s
	}
	slices.SortStableFunc(c.spans, func(a, b *otlp.Span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	for _, s := range c.spans {
		path, at := s.GetName(), s
		for len(at.GetParentSpanId()) > 0 {
			if at = byID[string(at.GetParentSpanId())]; at == nil {
				path = "LOST " + path
				break
			}
			path = at.GetName() + " > " + path
		}
		if strings.HasPrefix(path, name) {
			out = append(out, strings.TrimPrefix(strings.TrimPrefix(path, name), " > "))
		}
	}
	return out
}

// TestTraceOfAHandshake: the steps of a guest's handshake show with their times, and nothing that a guest chose or that is secret.
func TestTraceOfAHandshake(t *testing.T) {
	c := newReceiver(t)
	s := newServed(t, func(_ string, cfg *config.Config) { cfg.Telemetry.Endpoint, cfg.Telemetry.Ratio = c.url, 1 })
	s.approve()
	s.wantSecret("with tracing on")
	if _, err := s.fetch("resource/default/hidden/other"); err == nil {
		t.Error("there is a resource that nobody made")
	}
	entries, err := s.admin.Audit(t.Context(), 0)
	s.must(err)
	s.do(s.http(), "POST", s.ready.AttestationREST+"/challenge", `{"tee":"tpm"}`)
	token := s.token()
	s.stop() // what waits is delivered
	for name, want := range map[string][]string{
		"POST /kbs/v0/attest":            {"", "verify", "appraise", "audit", "", "verify", "appraise", "audit"},
		"GET /kbs/v0/resource/{rest}":    {"", "policy", "store", "audit", "", "policy", "store", "audit"},
		"POST /kbs/v0/resource/{rest}":   {"", "audit", "store", "audit"},
		"POST /challenge":                {""},
		"POST /kbs/v0/reference-value":   {"", "audit", "audit"},
		"LOST ":                          {},
		"GET /kbs/v0/resource/{rest} > ": {"policy", "store", "audit", "policy", "store", "audit"},
	} {
		if got := c.tree(name); !slices.Equal(got, want) {
			t.Errorf("%s has the spans %q, want %q", name, got, want)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	text := c.text.String()
	for _, want := range []string{`"cloister.tee"`, `"tpm"`, `"cloister.operation"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the traces lack %s", want)
		}
	}
	hidden := map[string]string{"the secret": secretText, "a resource": "default/key", "a resource that is missing": "hidden", "the admin token": token}
	for i, e := range entries {
		if e.Session != "" {
			hidden[fmt.Sprintf("session of entry %d", i)] = e.Session
		}
	}
	if len(hidden) < 6 {
		t.Errorf("%d things are looked for, sessions are missing", len(hidden))
	}
	for what, h := range hidden {
		if strings.Contains(text, h) || strings.Contains(text, hex.EncodeToString([]byte(h))) {
			t.Errorf("the traces tell %s", what)
		}
	}
}

// TestDeadCollector takes traces and does not answer: requests are as fast as ever, and so is the end.
func TestDeadCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newServed(t, func(_ string, cfg *config.Config) {
		cfg.Telemetry.Endpoint, cfg.Telemetry.Ratio, cfg.Telemetry.Queue = "http://"+l.Addr().String()+"/v1/traces", 1, 8
		cfg.Telemetry.TimeoutSeconds = 60
	})
	s.approve()
	began := time.Now()
	for range 10 {
		s.wantSecret("with a dead collector")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("ten guests took %s", took)
	}
	began = time.Now()
	s.stop()
	if took := time.Since(began); took > telemetryTimeout+10*time.Second {
		t.Errorf("the end took %s", took)
	}
}
