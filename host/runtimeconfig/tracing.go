package runtimeconfig

import (
	"log/slog"

	"github.com/cloister/cloister/host/trace"
)

// TraceExporter is where the spans of sandboxes go, or nil without tracing.otlp_endpoint. It reads the files that the settings name;
// nothing is sent before there is a span.
func (c *Config) TraceExporter(version string, log *slog.Logger) (*trace.Exporter, error) {
	if c.Tracing.OTLPEndpoint == "" {
		return nil, nil
	}
	e := c.exporter()
	e.Version, e.Logger = version, log
	return trace.NewExporter(e)
}

func (c *Config) exporter() trace.ExporterConfig {
	return trace.ExporterConfig{
		Endpoint: c.Tracing.OTLPEndpoint, Certificates: c.Tracing.OTLPCertificates, HeadersFile: c.Tracing.OTLPHeadersFile,
		InsecureHTTP: c.Tracing.OTLPInsecureHTTP, Ratio: c.Tracing.Ratio,
	}
}
