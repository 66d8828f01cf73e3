// Package span marks the steps of a request for tracing.
//
// It uses the tracer of the span that is in the context, so that it costs next to nothing when tracing is off, and nothing here knows
// where traces go (package telemetry does). Whatever is put on a span leaves the broker: only the attributes below exist. There is
// none for texts of errors, paths of resources, ids of sessions or anything else that a guest chooses.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name of the tracer.
const Scope = "github.com/cloister/cloister/broker"

// The steps of a request.
const (
	Verify     = "verify"
	Appraise   = "appraise"
	Policy     = "policy"
	Store      = "store"
	Collateral = "collateral"
	Audit      = "audit"
)

// Detail is something that may be said about a step.
type Detail struct{ kv attribute.KeyValue }

// TEE names the kind of evidence. The name must be that of a verifier, not what a guest sent.
func TEE(verifier string) Detail { return Detail{attribute.String("cloister.tee", verifier)} }

// Count is a number of things, such as devices or bytes.
func Count(n int) Detail { return Detail{attribute.Int("cloister.count", n)} }

// Source names where collateral comes from, such as "amd-kds".
func Source(name string) Detail { return Detail{attribute.String("cloister.source", name)} }

// Operation names what is done with a store, such as "get".
func Operation(name string) Detail { return Detail{attribute.String("cloister.operation", name)} }

// Carry puts the request that is in the context from into ctx, for work that outlives the request.
func Carry(ctx, from context.Context) context.Context {
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
}

// Start begins a step. The function it returns ends it; an error marks the step as failed and its text is not kept.
func Start(ctx context.Context, step string, details ...Detail) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	attrs := make([]attribute.KeyValue, 0, len(details))
	for _, d := range details {
		attrs = append(attrs, d.kv)
	}
	ctx, s := parent.TracerProvider().Tracer(Scope).Start(ctx, step, trace.WithAttributes(attrs...))
	return ctx, func(err error) {
		if err != nil {
			s.SetStatus(codes.Error, "")
		}
		s.End()
	}
}
