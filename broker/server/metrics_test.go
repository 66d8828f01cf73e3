package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/verifier"
)

// anyTEE challenges every TEE there may be, as a service elsewhere does.
type anyTEE struct{}

func (anyTEE) Challenge(context.Context, string, json.RawMessage) (*verifier.Challenge, error) {
	return &verifier.Challenge{}, nil
}

func (anyTEE) Evaluate(context.Context, string, string, []attestation.Item) (*attestation.Verdict, error) {
	return nil, fmt.Errorf("no")
}

// TestLabels: clients cannot make counters by naming TEEs.
func TestLabels(t *testing.T) {
	s := &stage{}
	srv := New(Parts{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now, Sessions: session.NewManager(time.Now, 0, 0), Audit: s,
		Attestation: anyTEE{}, Metrics: NewMetrics("", func() float64 { return 0 }), Limiter: NewLimiter(Limits{}, time.Now),
	})
	for i := range 50 {
		tee := fmt.Sprint("tee-", i)
		if i == 0 {
			tee = "snp"
		}
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, httptest.NewRequest("POST", "/kbs/v0/auth", strings.NewReader(`{"version":"0.4.0","tee":"`+tee+`","extra-params":""}`)))
		r := httptest.NewRequest("POST", "/kbs/v0/attest", strings.NewReader("{}"))
		for _, c := range w.Result().Cookies() {
			r.AddCookie(c)
		}
		w = httptest.NewRecorder()
		if srv.ServeHTTP(w, r); w.Code != http.StatusUnauthorized {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	srv.metrics.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if n := strings.Count(w.Body.String(), "kbs_attestation_failures_total{"); n != 2 {
		t.Errorf("there are %d counters of failures, want those of snp and of others", n)
	}
}
