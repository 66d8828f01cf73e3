package runtimeconfig

import (
	"strings"
	"testing"

	"github.com/cloister/cloister/host/trace"
)

func TestTracing(t *testing.T) {
	c := Default()
	if e, err := c.TraceExporter("v", nil); e != nil || err != nil || !c.Tracing.Steps {
		t.Errorf("by default: %v, %v", e, err)
	}
	e, err := load(t, "[tracing]\notlp_endpoint = \"http://127.0.0.1:4318/v1/traces\"\nratio = 0.5\n")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := e.Config.TraceExporter("v", nil); x == nil || err != nil {
		t.Error(err)
	}
	for text, says := range map[string]string{
		"otlp_endpoint = \"collector:4318\"":                  "tracing.otlp_endpoint",
		"otlp_endpoint = \"http://collector:4318/v1/traces\"": "plain http",
		"ratio = 1.5": "a number from 0 to 1",
		"otlp_endpoint = \"http://collector:4318/v1/traces\"\notlp_insecure_http = true":  "",
		"otlp_endpoint = \"https://collector:4318/v1/traces\"\notlp_headers_file = \"h\"": "",
	} {
		e, err := load(t, "[tracing]\n"+text+"\n")
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
		if err == nil && e.Config.Tracing.OTLPInsecureHTTP && len(e.Config.Insecure()) != 1 {
			t.Error("traces in the clear are not listed as insecure")
		}
	}
}

// TestExporterHasEverySetting: what is configured for the collector reaches it.
func TestExporterHasEverySetting(t *testing.T) {
	e, err := load(t, "[tracing]\notlp_endpoint = \"http://c.example/v1/traces\"\notlp_certificates = \"/c\"\notlp_headers_file = \"/h\"\n"+
		"otlp_insecure_http = true\nratio = 0.25\n")
	if err != nil {
		t.Fatal(err)
	}
	want := trace.ExporterConfig{Endpoint: "http://c.example/v1/traces", Certificates: "/c", HeadersFile: "/h", InsecureHTTP: true, Ratio: 0.25}
	if got := e.Config.exporter(); got != want {
		t.Errorf("%+v", got)
	}
}
