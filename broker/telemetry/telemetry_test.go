package telemetry

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/headerfile"

	"github.com/prometheus/client_golang/prometheus/testutil"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/broker/span"
)

// received is what a collector got in one request.
type received struct {
	header http.Header
	body   *collector.ExportTraceServiceRequest
}

// newCollector is an OTLP receiver in this process.
func newCollector(t *testing.T) (string, <-chan received) {
	t.Helper()
	got := make(chan received, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		raw, err := io.ReadAll(io.LimitReader(in, 4<<20))
		if err != nil {
			t.Error(err)
			return
		}
		body := &collector.ExportTraceServiceRequest{}
		if err := proto.Unmarshal(raw, body); err != nil {
			t.Error(err)
		}
		got <- received{r.Header, body}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/v1/traces", got
}

func start(t *testing.T, change func(*Config)) *Telemetry {
	t.Helper()
	c := DefaultConfig()
	c.Ratio, c.Replica = 1, "r1"
	change(&c)
	tel, err := Start(t.Context(), c, "v1.2", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

func request(t *testing.T, h http.Handler, path string, headers map[string]string) int {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTrace(t *testing.T) {
	endpoint, got := newCollector(t)
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("# token\nx-token: s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tel := start(t, func(c *Config) { c.Endpoint, c.HeadersFile = endpoint, headers })
	h := tel.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, end := span.Start(r.Context(), span.Verify, span.TEE("snp"), span.Count(2))
		_, inner := span.Start(ctx, span.Collateral, span.Source("amd-kds"))
		inner(errors.New("reading default/key/hidden-one"))
		end(nil)
		http.Error(w, "no", http.StatusUnauthorized)
	}))
	code := request(t, h, "/kbs/v0/resource/hidden-repository/key/hidden-one?hidden-query=1", map[string]string{
		"Traceparent": parent, "Tracestate": "hidden=state", "Cookie": "kbs-session-id=hidden-session", "Authorization": "Bearer hidden-token",
	})
	if code != http.StatusUnauthorized {
		t.Errorf("the status is %d", code)
	}
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := <-got
	if in.header.Get("X-Token") != "s3cret" {
		t.Error("the collector's header is missing")
	}
	text := prototext.Format(in.body)
	for _, want := range []string{"cloister-broker", "v1.2", "service.instance.id", "cloister.tee", "amd-kds", "/kbs/v0/resource/{rest}", "401"} {
		if !strings.Contains(text, want) {
			t.Errorf("the trace lacks %q", want)
		}
	}
	if strings.Contains(text, "hidden") {
		t.Errorf("the trace tells too much: %s", text)
	}
	spans := map[string]*otlp.Span{}
	for _, s := range in.body.ResourceSpans[0].ScopeSpans[0].Spans {
		spans[s.Name] = s
	}
	root := spans["GET /kbs/v0/resource/{rest}"]
	if len(spans) != 3 || root == nil {
		t.Fatalf("spans: %s", text)
	}
	if len(root.ParentSpanId) != 0 || strings.Contains(parent, hexOf(root.TraceId)) {
		t.Error("the client chooses the trace")
	}
	if len(root.Links) != 1 || hexOf(root.Links[0].TraceId) != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the links are %v", root.Links)
	}
	if v := spans[span.Verify]; string(v.ParentSpanId) != string(root.SpanId) || v.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("verify: %v", v)
	}
	if c := spans[span.Collateral]; c.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || c.Status.GetMessage() != "" {
		t.Errorf("collateral: %v", c)
	}
	if n := testutil.ToFloat64(tel.spans.WithLabelValues(resultDelivered)); n != 3 {
		t.Errorf("%v spans are counted as delivered, want 3", n)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	for _, c := range b {
		out.WriteByte(digits[c>>4])
		out.WriteByte(digits[c&15])
	}
	return out.String()
}

// TestClientsDoNotForceSampling sends a sampled parent to a broker that samples nothing.
func TestClientsDoNotForceSampling(t *testing.T) {
	endpoint, got := newCollector(t)
	tel := start(t, func(c *Config) { c.Endpoint, c.Ratio = endpoint, 0 })
	h := tel.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 50 {
		request(t, h, "/kbs/v0/auth", map[string]string{"Traceparent": parent})
	}
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(got) != 0 {
		t.Error("a client's flag made the broker sample")
	}
}

// TestSlowCollector has a collector that does not answer: requests are not held up, the queue is bounded, and the end is too.
func TestSlowCollector(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(release)
	tel := start(t, func(c *Config) { c.Endpoint, c.Queue, c.TimeoutSeconds = srv.URL+"/v1/traces", 64, 1 })
	h := tel.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	began := time.Now()
	for range 5000 {
		request(t, h, "/kbs/v0/auth", nil)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("5000 requests took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began = time.Now()
	if err := tel.Close(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	if n := testutil.ToFloat64(tel.spans.WithLabelValues(resultEnded)); n != 5000 {
		t.Errorf("%v spans were recorded, want 5000", n)
	}
}

// TestOutage has no collector at all, and one that fails.
func TestOutage(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	address := gone.URL
	gone.Close()
	tel := start(t, func(c *Config) { c.Endpoint, c.TimeoutSeconds = address+"/v1/traces", 1 })
	request(t, tel.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), "/kbs/v0/auth", nil)
	if err := tel.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(tel.spans.WithLabelValues(resultFailed)); n != 1 {
		t.Errorf("%v spans are counted as failed, want 1", n)
	}
}

func TestPanicsAndProbes(t *testing.T) {
	endpoint, got := newCollector(t)
	tel := start(t, func(c *Config) { c.Endpoint = endpoint })
	h := tel.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/kbs/v0/auth" {
			panic("hidden")
		}
	}))
	request(t, h, "/healthz", nil)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is swallowed")
			}
		}()
		request(t, h, "/kbs/v0/auth", nil)
	}()
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := prototext.Format((<-got).body)
	if strings.Contains(text, "hidden") || strings.Contains(text, "healthz") || !strings.Contains(text, "STATUS_CODE_ERROR") {
		t.Errorf("the trace is %s", text)
	}
}

func TestOff(t *testing.T) {
	tel, err := Start(t.Context(), DefaultConfig(), "v", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	request(t, tel.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ctx, end := span.Start(r.Context(), span.Store)
		if ctx != r.Context() {
			t.Error("there is a span although tracing is off")
		}
		end(nil)
	})), "/kbs/v0/auth", nil)
	if err := tel.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRouteTellsNoNames(t *testing.T) {
	for path, want := range map[string]string{
		"/kbs/v0/auth": "/kbs/v0/auth", "/kbs/v0/resource/a/b/c": "/kbs/v0/resource/{rest}", "/kbs/v0/secretplugin/x": "/kbs/v0/{plugin}",
		"/cloister/v1/attestations/0123": "/cloister/v1/attestations/{rest}", "/metrics": "", "/x": "{other}", "/attestation": "/attestation",
		"/ns/team-a/kbs/v0/resource/a/b/c": "/ns/{tenant}/kbs/v0/resource/{rest}", "/ns/team-a/other": "/ns/{tenant}{other}", "/ns/team-a": "{other}",
		"/ns/a/ns/b/ns/c/kbs/v0/auth": "{other}", "/cloister/v1/tenants/team-a": "/cloister/v1/tenants/{rest}", "/console/decisions/0123": "/console",
	} {
		if got := Route(path); got != want {
			t.Errorf("route of %s is %q, want %q", path, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	for says, change := range map[string]func(*Config){
		"such as":         func(c *Config) { c.Endpoint = "collector:4318" },
		"headers_file":    func(c *Config) { c.Endpoint = "https://user:pw@c/v1/traces" },
		"no path":         func(c *Config) { c.Endpoint = "https://c:4318" },
		"insecure_http":   func(c *Config) { c.Endpoint = "http://c:4318/v1/traces" },
		"ratio":           func(c *Config) { c.Ratio = 1.5 },
		"queue":           func(c *Config) { c.Queue = 0 },
		"timeout_seconds": func(c *Config) { c.TimeoutSeconds = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "pw") {
			t.Errorf("the error is %v, want one with %q", err, says)
		}
	}
	c := DefaultConfig()
	c.Endpoint = "http://127.0.0.1:4318/v1/traces"
	if err := errors.Join(c.Validate(), DefaultConfig().Validate()); err != nil {
		t.Error(err)
	}
	if _, err := headerfile.Parse([]byte("s3cret")); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a wrong headers file: %v", err)
	}
}
