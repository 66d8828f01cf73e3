package asapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/as"
)

// strict is an audit log that, like the real one, writes nothing for who has gone.
type strict struct{ entries []audit.Entry }

func (s *strict) Append(ctx context.Context, e audit.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.entries = append(s.entries, e)
	return nil
}

// TestHangUp: who hangs up leaves a trace all the same.
func TestHangUp(t *testing.T) {
	f, api := newFake()
	log := &strict{}
	api.Audit, f.err = log, errors.New("the quote is bad")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := api.evaluate(ctx, "192.0.2.1", []evidence{{tee: "tdx", text: json.RawMessage(`{}`), structured: json.RawMessage(`{}`)}}, nil); err == nil {
		t.Error("bad evidence is good")
	}
	if err := api.setPolicy(ctx, "192.0.2.1", adminauth.Call{Bearer: "guess"}, "p_cpu", ""); !errors.Is(err, adminauth.ErrDenied) {
		t.Errorf("a guessed token: %v", err)
	}
	if len(log.entries) != 2 || log.entries[0].Decision != audit.Deny || log.entries[1].Decision != audit.Deny {
		t.Errorf("the audit log has %+v, want both refusals", log.entries)
	}
}

// broken panics at evidence, or holds on to it.
type broken struct {
	begun chan struct{}
	hold  chan struct{}
	under atomic.Int32
	most  atomic.Int32
}

func (*broken) Challenge(context.Context, string, json.RawMessage) (*verifier.Challenge, error) {
	return nil, errors.New("none")
}

func (b *broken) Evaluate(context.Context, string, string, []attestation.Item) (*attestation.Verdict, error) {
	if b.hold == nil {
		panic("index out of range")
	}
	b.most.Store(max(b.most.Load(), b.under.Add(1)))
	b.begun <- struct{}{}
	defer b.under.Add(-1)
	<-b.hold
	return nil, errors.New("no")
}

// TestPanic: evidence that makes a verifier panic ends its request and not the broker.
func TestPanic(t *testing.T) {
	_, api := newFake()
	api.Attestation = &broken{}
	ln := bufconn.Listen(1 << 20)
	srv := api.GRPC()
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = as.NewAttestationServiceClient(conn).AttestationEvaluate(t.Context(), &as.AttestationRequest{
		VerificationRequests: []*as.IndividualAttestationRequest{{
			Tee: "tdx", Evidence: b64([]byte(`{}`)), RuntimeData: &as.IndividualAttestationRequest_StructuredRuntimeData{StructuredRuntimeData: `{}`},
		}},
	})
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v, want an internal error", err)
	}
}

// TestConcurrent: no more evidence than configured is looked at at the same time; the rest waits.
func TestConcurrent(t *testing.T) {
	_, api := newFake()
	api.Concurrent = 1
	b := &broken{hold: make(chan struct{}), begun: make(chan struct{}, 2)}
	api.Parts.Attestation = b
	api = New(api.Parts)
	list := []evidence{{tee: "tdx", text: json.RawMessage(`{}`), structured: json.RawMessage(`{}`)}}
	done := make(chan error)
	go func() { _, err := api.evaluate(t.Context(), "", list, nil); done <- err }()
	select {
	case <-b.begun:
	case err := <-done:
		t.Fatalf("the first evaluation ends: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := api.evaluate(ctx, "", list, nil); !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("a second evaluation: %v, want that it is busy", err)
	}
	close(b.hold)
	<-done
	if b.most.Load() != 1 {
		t.Errorf("%d were under way at once", b.most.Load())
	}
}
