// Package telemetry sends traces of requests to a collector by OTLP over HTTP.
//
// It is off unless an endpoint is configured. Requests never wait for the collector: spans go into a bounded queue, and when that is
// full, or the collector is away, they are dropped and counted. Guests are not trusted with sampling: the trace a client names is
// linked from a trace of our own, whose id decides whether it is sampled.
package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloister/cloister/internal/headerfile"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/cloister/cloister/broker/span"
)

const (
	batchDelay = 2 * time.Second
	maxBatch   = 512
)

// Telemetry is the tracing of a broker. Its zero value is not usable; Start makes one.
type Telemetry struct {
	tracer   trace.Tracer
	provider *sdk.TracerProvider // nil when tracing is off
	exporter *counting
	spans    *prometheus.CounterVec
}

// Start begins tracing as configured. Close ends it. The collector need not be reachable.
func Start(ctx context.Context, c Config, version string, log *slog.Logger) (*Telemetry, error) {
	t := &Telemetry{spans: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cloister_trace_spans_total", Help: "Spans of traces: ended, delivered to the collector, or failed to be. The rest was dropped or waits.",
	}, []string{"result"})}
	for _, r := range []string{resultEnded, resultDelivered, resultFailed} {
		t.spans.WithLabelValues(r)
	}
	if c.Endpoint == "" {
		t.tracer = noop.NewTracerProvider().Tracer(span.Scope)
		return t, nil
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	options, err := c.options()
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	otlp, err := otlptrace.New(ctx, otlptracehttp.NewClient(options...))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	about := []attribute.KeyValue{attribute.String("service.name", "cloister-broker"), attribute.String("service.version", version)}
	if c.Replica != "" {
		about = append(about, attribute.String("service.instance.id", c.Replica))
	}
	t.exporter = &counting{SpanExporter: otlp, spans: t.spans, log: log}
	t.provider = sdk.NewTracerProvider(
		sdk.WithResource(resource.NewSchemaless(about...)), // and nothing from the environment
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(c.Ratio))),
		sdk.WithRawSpanLimits(sdk.SpanLimits{
			AttributeValueLengthLimit: 128, AttributeCountLimit: 32, EventCountLimit: 16, LinkCountLimit: 4,
			AttributePerEventCountLimit: 8, AttributePerLinkCountLimit: 8,
		}),
		sdk.WithSpanProcessor(ended{spans: t.spans}),
		sdk.WithSpanProcessor(sdk.NewBatchSpanProcessor(t.exporter, sdk.WithMaxQueueSize(c.Queue), sdk.WithBatchTimeout(batchDelay),
			sdk.WithMaxExportBatchSize(min(c.Queue, maxBatch)), sdk.WithExportTimeout(c.timeout()))),
	)
	t.tracer = t.provider.Tracer(span.Scope)
	return t, nil
}

// options are those of the exporter. They are given in full, so that variables of the environment do not change them.
func (c Config) options() ([]otlptracehttp.Option, error) {
	headers := map[string]string{}
	if c.HeadersFile != "" {
		text, err := os.ReadFile(c.HeadersFile)
		if err != nil {
			return nil, fmt.Errorf("reading headers_file: %w", err)
		}
		if headers, err = headerfile.Parse(text); err != nil {
			return nil, fmt.Errorf("headers_file %s: %w", c.HeadersFile, err)
		}
	}
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(c.Endpoint), otlptracehttp.WithHeaders(headers), otlptracehttp.WithTimeout(c.timeout()),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}), // off: while one batch is tried again, the next ones would be lost
	}
	if strings.HasPrefix(c.Endpoint, "http://") {
		return append(options, otlptracehttp.WithInsecure()), nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Certificates != "" {
		text, err := os.ReadFile(c.Certificates)
		if err != nil {
			return nil, fmt.Errorf("reading certificates: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("certificates: %s holds no PEM certificate", c.Certificates)
		}
	}
	return append(options, otlptracehttp.WithTLSClientConfig(conf)), nil
}

// Collectors are the metrics.
func (t *Telemetry) Collectors() []prometheus.Collector { return []prometheus.Collector{t.spans} }

// Close delivers what waits, as far as the context's time allows. What cannot be delivered is no error: it is only a trace.
func (t *Telemetry) Close(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ending the traces: %w", err)
	}
	return nil
}

// The values of the label result.
const (
	resultEnded     = "ended"
	resultDelivered = "delivered"
	resultFailed    = "failed"
)

// counting counts deliveries and logs when they begin to fail and work again. It keeps errors to itself: the SDK would print them.
type counting struct {
	sdk.SpanExporter
	spans *prometheus.CounterVec
	log   *slog.Logger
	down  atomic.Bool
}

// ExportSpans is part of sdk.SpanExporter.
func (c *counting) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		c.spans.WithLabelValues(resultFailed).Add(float64(len(spans)))
		if !c.down.Swap(true) {
			c.log.WarnContext(ctx, "traces cannot be delivered, they are dropped until they can", "error", plain(err))
		}
		return nil
	}
	c.spans.WithLabelValues(resultDelivered).Add(float64(len(spans)))
	if c.down.Swap(false) {
		c.log.InfoContext(ctx, "traces are delivered again")
	}
	return nil
}

// plain bounds the text of an error, which may hold the answer of the collector.
func plain(err error) string {
	const most = 256
	return strings.ToValidUTF8(fmt.Sprintf("%.*s", most, err.Error()), "?")
}

// ended counts spans that were recorded.
type ended struct{ spans *prometheus.CounterVec }

// OnStart is part of sdk.SpanProcessor.
func (ended) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd is part of sdk.SpanProcessor.
func (e ended) OnEnd(sdk.ReadOnlySpan) { e.spans.WithLabelValues(resultEnded).Inc() }

// Shutdown is part of sdk.SpanProcessor.
func (ended) Shutdown(context.Context) error { return nil }

// ForceFlush is part of sdk.SpanProcessor.
func (ended) ForceFlush(context.Context) error { return nil }
