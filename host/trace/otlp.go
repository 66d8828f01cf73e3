package trace

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cloister/cloister/internal/headerfile"
)

// ExporterConfig says where spans go.
type ExporterConfig struct {
	// Endpoint is the whole OTLP/HTTP address, for example "https://collector.example:4318/v1/traces".
	Endpoint string
	// Certificates is a PEM file with the authorities of the collector; empty means those of the system.
	Certificates string
	// HeadersFile holds lines "Name: value" that the collector wants, such as its token.
	HeadersFile string
	// InsecureHTTP allows plain HTTP to another machine.
	InsecureHTTP bool
	// Ratio is the part of sandboxes whose steps are sent, from 0 to 1. Who asks for a sandbox within a trace has decided already.
	Ratio float64
	// Version is that of this program.
	Version string
	// Logger is told when deliveries begin to fail; nil tells nobody.
	Logger *slog.Logger
}

const (
	deliveryTimeout = 10 * time.Second
	scope           = "github.com/cloister/cloister/host"
)

// Exporter sends spans to a collector by OTLP over HTTP, encoded as JSON (OTLP 1.x, "OTLP/HTTP"). It is written by hand because
// there is one shim for each pod, and the libraries for it would cost each of them memory. It has no goroutine of its own.
type Exporter struct {
	endpoint string
	headers  map[string]string
	client   *http.Client
	ratio    float64
	version  string
	log      *slog.Logger
	down     atomic.Bool
	dropped  atomic.Int64
}

// Validate reports every fault of the settings, without looking at files.
func (c ExporterConfig) Validate() error {
	var faults []error
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "":
		faults = append(faults, errors.New(`the endpoint is not an address such as "https://collector.example:4318/v1/traces" (tokens belong into the headers file)`))
	case u.Path == "" || u.Path == "/":
		faults = append(faults, fmt.Errorf(`the endpoint has no path, want for example "%s://%s/v1/traces"`, u.Scheme, u.Host))
	case u.Scheme == "http" && !c.InsecureHTTP && !loopback(u.Hostname()):
		faults = append(faults, errors.New("the endpoint is plain http to another machine: want https, or insecure HTTP allowed by name"))
	}
	if !(c.Ratio >= 0 && c.Ratio <= 1) {
		faults = append(faults, fmt.Errorf("the ratio is %v, want 0 to 1", c.Ratio))
	}
	return errors.Join(faults...)
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// NewExporter checks the settings and reads the files they name. The collector need not be reachable.
func NewExporter(c ExporterConfig) (*Exporter, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("sending traces: %w", err)
	}
	e := &Exporter{endpoint: c.Endpoint, ratio: c.Ratio, version: c.Version, log: c.Logger}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Certificates != "" {
		text, err := os.ReadFile(c.Certificates)
		if err != nil {
			return nil, fmt.Errorf("sending traces: reading the collector's authorities: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("sending traces: %s holds no PEM certificate", c.Certificates)
		}
	}
	if c.HeadersFile != "" {
		text, err := os.ReadFile(c.HeadersFile)
		if err != nil {
			return nil, fmt.Errorf("sending traces: reading the headers: %w", err)
		}
		if e.headers, err = headerfile.Parse(text); err != nil {
			return nil, fmt.Errorf("sending traces: headers file %s: %w", c.HeadersFile, err)
		}
	}
	e.client = &http.Client{
		// Redirects would take the headers along; connections are not kept, since a sandbox sends a few times in its life.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, DisableKeepAlives: true},
	}
	return e, nil
}

// span is one step on its way to the collector.
type span struct {
	id, parent [8]byte
	name       string
	start, end time.Time
	attrs      []Attr
	failed     bool
}

// The JSON form of OTLP: ids in hex, times as decimal text (opentelemetry-proto, trace.proto).
type (
	otlpValue struct {
		StringValue string `json:"stringValue"`
	}
	otlpAttr struct {
		Key   string    `json:"key"`
		Value otlpValue `json:"value"`
	}
	otlpStatus struct {
		Code int `json:"code,omitempty"`
	}
	otlpSpan struct {
		TraceID    string     `json:"traceId"`
		SpanID     string     `json:"spanId"`
		Parent     string     `json:"parentSpanId,omitempty"`
		Name       string     `json:"name"`
		Kind       int        `json:"kind"`
		Start      string     `json:"startTimeUnixNano"`
		End        string     `json:"endTimeUnixNano"`
		Attributes []otlpAttr `json:"attributes,omitempty"`
		Status     otlpStatus `json:"status"`
	}
	otlpScope struct {
		Name    string `json:"name"`
		Version string `json:"version,omitempty"`
	}
	otlpScopeSpans struct {
		Scope otlpScope  `json:"scope"`
		Spans []otlpSpan `json:"spans"`
	}
	otlpResource struct {
		Attributes []otlpAttr `json:"attributes"`
	}
	otlpResourceSpans struct {
		Resource   otlpResource     `json:"resource"`
		ScopeSpans []otlpScopeSpans `json:"scopeSpans"`
	}
	otlpRequest struct {
		ResourceSpans []otlpResourceSpans `json:"resourceSpans"`
	}
)

func (e *Exporter) encode(id [16]byte, about []Attr, spans []span) ([]byte, error) {
	out := make([]otlpSpan, 0, len(spans))
	for _, s := range spans {
		x := otlpSpan{TraceID: fmt.Sprintf("%x", id), SpanID: fmt.Sprintf("%x", s.id), Name: s.name, Kind: 1, // internal
			Start: strconv.FormatInt(s.start.UnixNano(), 10), End: strconv.FormatInt(s.end.UnixNano(), 10), Attributes: asOTLP(s.attrs)}
		if s.parent != [8]byte{} {
			x.Parent = fmt.Sprintf("%x", s.parent)
		}
		if s.failed {
			x.Status.Code = 2 // error; its text stays here
		}
		out = append(out, x)
	}
	resource := append([]Attr{{"service.name", "cloister-shim"}, {"service.version", e.version}}, about...)
	return json.Marshal(otlpRequest{ResourceSpans: []otlpResourceSpans{{
		Resource:   otlpResource{Attributes: asOTLP(resource)},
		ScopeSpans: []otlpScopeSpans{{Scope: otlpScope{Name: scope, Version: e.version}, Spans: out}},
	}}})
}

func asOTLP(attrs []Attr) []otlpAttr {
	var out []otlpAttr
	for _, a := range attrs {
		out = append(out, otlpAttr{a.Key, otlpValue{a.Value}})
	}
	return out
}

// send makes one delivery. What fails is lost, and said once until it works again.
func (e *Exporter) send(ctx context.Context, id [16]byte, about []Attr, spans []span) {
	ctx, cancel := context.WithTimeout(ctx, deliveryTimeout)
	defer cancel()
	err := e.post(ctx, id, about, spans)
	switch {
	case err != nil:
		e.dropped.Add(int64(len(spans)))
		if !e.down.Swap(true) {
			e.log.WarnContext(ctx, "traces cannot be delivered, they are dropped until they can", "error", text(err.Error(), maxError))
		}
	case e.down.Swap(false):
		e.log.InfoContext(ctx, "traces are delivered again", "dropped", e.dropped.Load())
	}
}

func (e *Exporter) post(ctx context.Context, id [16]byte, about []Attr, spans []span) error {
	body, err := e.encode(id, about, spans)
	if err != nil {
		return fmt.Errorf("encoding %d spans: %w", len(spans), err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.endpoint, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sending %d spans: %w", len(spans), err)
	}
	for name, value := range e.headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("sending %d spans: %w", len(spans), err)
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("sending %d spans: the collector answered %s: %s", len(spans), resp.Status, said)
	}
	return nil
}

// Dropped is how many spans never reached the collector.
func (e *Exporter) Dropped() int64 { return e.dropped.Load() }

// deliver starts a delivery of what waits, unless one runs: that one takes it along. r.mu is held.
func (r *Recorder) deliver() {
	if r.sending != nil || len(r.queue) == 0 {
		return
	}
	done := make(chan struct{})
	r.sending = done
	go func() {
		defer close(done)
		for {
			r.mu.Lock()
			spans := r.queue
			r.queue = nil
			if len(spans) == 0 {
				r.sending = nil
				r.mu.Unlock()
				return
			}
			r.mu.Unlock()
			r.exporter.send(context.Background(), r.traceID, r.about, spans)
		}
	}()
}

// flush waits until everything is delivered or dropped, or ctx ends.
func (r *Recorder) flush(ctx context.Context) {
	if r.exporter == nil {
		return
	}
	r.mu.Lock()
	r.deliver()
	done := r.sending
	r.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
