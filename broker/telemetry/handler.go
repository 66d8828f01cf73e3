package telemetry

import (
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Handler traces the requests of a handler. A traceparent of the client becomes a link and nothing more: it neither chooses the id of
// the trace nor whether it is sampled. Probes of health and metrics are not traced.
func (t *Telemetry) Handler(next http.Handler) http.Handler {
	if t.provider == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := Route(r.URL.Path)
		if route == "" {
			next.ServeHTTP(w, r)
			return
		}
		options := []trace.SpanStartOption{
			trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", method(r.Method)), attribute.String("http.route", route)),
		}
		if link, ok := remote(r); ok {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: link}))
		}
		ctx, s := t.tracer.Start(r.Context(), method(r.Method)+" "+route, options...)
		a := &answer{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				s.SetStatus(codes.Error, "")
				s.End()
				panic(p)
			}
			s.SetAttributes(attribute.Int("http.response.status_code", a.code()))
			if a.code() >= http.StatusInternalServerError {
				s.SetStatus(codes.Error, "")
			}
			s.End()
		}()
		next.ServeHTTP(a, r.WithContext(ctx))
	})
}

// remote is the span that a client says its request belongs to. Its vendor-specific state is left out: it is any text.
func remote(r *http.Request) (trace.SpanContext, bool) {
	if len(r.Header.Values("Traceparent")) != 1 {
		return trace.SpanContext{}, false
	}
	only := propagation.MapCarrier{"traceparent": r.Header.Get("Traceparent")}
	sc := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(r.Context(), only))
	return sc, sc.IsValid()
}

// method is a known method, or "OTHER": clients choose the text.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead:
		return m
	}
	return "OTHER"
}

// Route is the part of a path that names no resource, policy or record; "" is not traced.
func Route(path string) string {
	if rest, ok := strings.CutPrefix(path, "/ns/"); ok {
		if _, sub, ok := strings.Cut(rest, "/"); ok && !strings.HasPrefix(sub, "ns/") {
			return "/ns/{tenant}" + Route("/"+sub)
		}
	}
	for _, prefix := range []string{"/kbs/v0/", "/cloister/v1/"} {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		first, _, more := strings.Cut(rest, "/")
		switch first {
		case "auth", "attest", "attestation-policy", "resource-policy", "reference-value", "resource", "status", "reference-value-groups",
			"resources", "audit", "attestations", "appraisals", "keys", "tenants":
		default:
			first, more = "{plugin}", false
		}
		if more {
			first += "/{rest}"
		}
		return prefix + first
	}
	if path == "/console" || strings.HasPrefix(path, "/console/") {
		return "/console"
	}
	switch path {
	case "/attestation", "/challenge", "/policy", "/certificate":
		return path
	case "/healthz", "/readyz", "/metrics":
		return ""
	}
	return "{other}"
}

// answer notes the status that was sent.
type answer struct {
	http.ResponseWriter
	status int
}

// WriteHeader is part of http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) code() int {
	if a.status == 0 {
		return http.StatusOK
	}
	return a.status
}
