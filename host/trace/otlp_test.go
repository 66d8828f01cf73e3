package trace

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/headerfile"

	"github.com/containerd/ttrpc"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// newCollector takes what is sent.
func newCollector(t *testing.T) (endpoint string, got chan *http.Request, bodies chan []byte) {
	t.Helper()
	got, bodies = make(chan *http.Request, 16), make(chan []byte, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- r
		bodies <- body
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/v1/traces", got, bodies
}

func newExporter(t *testing.T, c ExporterConfig) *Exporter {
	t.Helper()
	if c.Version == "" {
		c.Ratio, c.Version = 1, "v1"
	}
	e, err := NewExporter(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExport(t *testing.T) {
	endpoint, got, bodies := newCollector(t)
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("# comment\nx-token: s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := newExporter(t, ExporterConfig{Endpoint: endpoint, HeadersFile: headers})
	r, file := newFile(t, func(c *Config) {
		c.Exporter, c.Traceparent = e, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		c.Attrs = []Attr{String("cloister.vmm", "qemu")}
	})
	ctx, end := r.Step(t.Context(), "sandbox")
	inner, fail := Step(ctx, "vm-start", String("k", "v"))
	if want := "00-0af7651916cd43dd8448eb211c80319c-"; !strings.HasPrefix(Traceparent(inner), want) || Traceparent(inner) == Traceparent(ctx) {
		t.Errorf("trace contexts %q, %q", Traceparent(inner), Traceparent(ctx))
	}
	req := &ttrpc.Request{}
	err := Interceptor(inner, req, nil, nil, func(context.Context, *ttrpc.Request, *ttrpc.Response) error { return nil })
	if err != nil || len(req.Metadata) != 1 || req.Metadata[0].Key != "traceparent" || req.Metadata[0].Value != Traceparent(inner) {
		t.Errorf("metadata %v, %v", req.Metadata, err)
	}
	fail(errors.New("hidden text"))
	end(nil)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	in, body := <-got, <-bodies
	if in.Header.Get("X-Token") != "s3cret" || in.Header.Get("Content-Type") != "application/json" || in.URL.Path != "/v1/traces" {
		t.Errorf("the request is %v %v", in.URL, in.Header)
	}
	if strings.Contains(string(body), "hidden") {
		t.Error("the text of an error leaves the node")
	}
	// What protobuf's own reader takes has the right names and kinds; the ids, which OTLP wants in hex, are looked at below.
	var parsed collector.ExportTraceServiceRequest
	if err := protojson.Unmarshal(body, &parsed); err != nil {
		t.Fatalf("%s\n%v", body, err)
	}
	about := map[string]string{}
	for _, a := range parsed.ResourceSpans[0].Resource.Attributes {
		about[a.Key] = a.Value.GetStringValue()
	}
	if about["service.name"] != "cloister-shim" || about["k8s.pod.name"] != "web" || about["cloister.vmm"] != "qemu" {
		t.Errorf("the resource is %v", about)
	}
	spans := parsed.ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 2 || spans[0].Name != "vm-start" || spans[0].Status.Code != 2 || spans[0].Status.Message != "" || spans[1].Status.GetCode() != 0 ||
		spans[0].EndTimeUnixNano < spans[0].StartTimeUnixNano || spans[0].Attributes[0].Value.GetStringValue() != "v" {
		t.Errorf("the spans are %v", spans)
	}
	var raw otlpRequest
	if err := json.Unmarshal(body, &raw); err != nil {
		t.Fatal(err)
	}
	x := raw.ResourceSpans[0].ScopeSpans[0].Spans
	if x[1].Parent != "b7ad6b7169203331" || x[0].Parent != x[1].SpanID || x[0].TraceID != "0af7651916cd43dd8448eb211c80319c" || len(x[0].SpanID) != 16 {
		t.Errorf("the ids are %+v", x)
	}
	if load(t, file).TraceID != x[0].TraceID {
		t.Error("the file has another trace id")
	}
}

// TestSlowCollector has one that does not answer: no step waits, the queue is bounded, the end is too.
func TestSlowCollector(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(release)
	e := newExporter(t, ExporterConfig{Endpoint: srv.URL + "/v1/traces"})
	r := New(Config{Exporter: e})
	for range 3 * maxQueue {
		_, end := r.Step(t.Context(), "x")
		end(nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := r.Close(ctx); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if len(r.queue) > maxQueue || e.Dropped() < maxQueue {
		t.Errorf("%d wait, %d are dropped", len(r.queue), e.Dropped())
	}
}

func TestNoCollector(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Redirect(w, &http.Request{}, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	e := newExporter(t, ExporterConfig{Endpoint: srv.URL + "/v1/traces"})
	r := New(Config{Exporter: e})
	_, end := r.Step(t.Context(), "x")
	end(nil)
	if err := r.Close(t.Context()); err != nil || e.Dropped() != 1 {
		t.Errorf("%v, %d dropped", err, e.Dropped())
	}
}

func TestSampling(t *testing.T) {
	e := newExporter(t, ExporterConfig{Endpoint: "http://127.0.0.1:1/v1/traces", Version: "v", Ratio: 0})
	if New(Config{Exporter: e}) != nil {
		t.Error("none is sampled, and one is recorded")
	}
	r, _ := newFile(t, func(c *Config) { c.Exporter = e })
	ctx, end := r.Step(t.Context(), "x")
	if end(nil); Traceparent(ctx) != "" {
		t.Error("the trace is not sent, and the guest hears of it")
	}
	if New(Config{Exporter: e, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}) == nil {
		t.Error("the caller's decision is ignored")
	}
}

func TestTraceparent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for s, want := range map[string]bool{
		good: true, "01" + good[2:] + "-more": true, good + "-more": false, "ff" + good[2:]: false, strings.ToUpper(good): false, "": false,
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": false, "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01": false,
		good[:len(good)-1] + "x": false, "00-zz": false, "01" + good[2:] + "-" + strings.Repeat("x", 300): false,
	} {
		if _, _, _, ok := parseTraceparent(s); ok != want {
			t.Errorf("%q: %v", s, ok)
		}
	}
}

func TestExporterConfig(t *testing.T) {
	for says, c := range map[string]ExporterConfig{
		"such as":        {Endpoint: "collector:4318"},
		"headers file":   {Endpoint: "https://user:pw@c/v1/traces"},
		"no path":        {Endpoint: "https://c:4318"},
		"plain http":     {Endpoint: "http://c:4318/v1/traces"},
		"ratio":          {Endpoint: "https://c/v1/traces", Ratio: 2},
		"authorities":    {Endpoint: "https://c/v1/traces", Certificates: "/nonexistent"},
		"certificate":    {Endpoint: "https://c/v1/traces", Certificates: "/dev/null"},
		"reading the he": {Endpoint: "https://c/v1/traces", HeadersFile: "/nonexistent"},
	} {
		if _, err := NewExporter(c); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "pw") {
			t.Errorf("the error is %v, want one with %q", err, says)
		}
	}
	if _, err := headerfile.Parse([]byte("s3cret")); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a wrong headers file: %v", err)
	}
}
