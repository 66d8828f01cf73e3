package collateral

import (
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cloister/cloister/broker/span"
)

// TestFetchesAreTraced: a fetch shows in the trace of the request that waits for it, and what is in the cache costs none.
func TestFetchesAreTraced(t *testing.T) {
	a := newAuthority(t)
	down := &fake{name: "down", do: fails(errors.New("away"))}
	up := &fake{name: "up", do: always(a.crl(t, start0, 24*time.Hour), nil)}
	c := open(t, Options{Now: newClock().now}, down, up)
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	ctx, request := provider.Tracer("test").Start(t.Context(), "request")
	for range 2 {
		if _, err := c.Get(ctx, Query{Key: crlKey}); err != nil {
			t.Fatal(err)
		}
	}
	request.End()
	ended := spans.Ended()
	if len(ended) != 3 {
		t.Fatalf("there are %d spans, want those of two sources and the request", len(ended))
	}
	for i, source := range []string{"down", "up"} {
		s := ended[i]
		if s.Name() != span.Collateral || s.Parent().SpanID() != request.SpanContext().SpanID() || len(s.Attributes()) != 1 ||
			s.Attributes()[0].Value.AsString() != source || (s.Status().Code == codes.Error) != (source == "down") {
			t.Errorf("span %d is %s of %v, %v, %v", i, s.Name(), s.Parent().SpanID(), s.Attributes(), s.Status())
		}
	}
}
