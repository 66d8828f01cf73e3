package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
)

// recordingGate refuses everything and remembers what it was asked.
type recordingGate struct {
	asked atomic.Value // last rule
	allow bool
}

func (g *recordingGate) Allow(_ context.Context, rule string, _ proto.Message) error {
	g.asked.Store(rule)
	if g.allow {
		return nil
	}
	return &gate.DeniedError{Rule: rule, Reasons: []string{"because"}}
}

func (g *recordingGate) AllowRead(context.Context, proto.Message) (bool, error) {
	g.asked.Store("ReadStreamRequest")
	return g.allow, nil
}

func (g *recordingGate) Exited(context.Context, string, int) error { return nil }

func (g *recordingGate) SetPolicy(context.Context, string) error {
	return g.Allow(context.Background(), "SetPolicyRequest", nil)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve runs svc behind gate and returns a client.
func serve(t *testing.T, g Gate, svc agent.AgentServiceService) *ttrpc.Client {
	t.Helper()
	srv, err := newServer(g, discard(), svc, health{version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(context.Background(), l) }()
	t.Cleanup(func() { srv.Close() })
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestEveryMethodIsGated calls every method of the service with a refusing gate. The handlers are those of a nil agent,
// so one that were reached would not get far unnoticed.
func TestEveryMethodIsGated(t *testing.T) {
	g := &recordingGate{}
	a := New(Config{Gate: g, Log: discard(), Layout: DefaultLayout()})
	client := agent.NewAgentServiceClient(serve(t, g, a))
	service := reflect.TypeFor[agent.AgentServiceService]()
	for i := range service.NumMethod() {
		m := service.Method(i)
		t.Run(m.Name, func(t *testing.T) {
			req := reflect.New(m.Type.In(1).Elem())
			want := req.Type().Elem().Name()
			g.asked.Store("nothing")
			out := reflect.ValueOf(client).MethodByName(m.Name).Call([]reflect.Value{reflect.ValueOf(t.Context()), req})
			err, _ := out[1].Interface().(error)
			if decidedLater(agentPrefix + m.Name) {
				// Without a process there is nothing to read, so reads fail before the gate; SetPolicy reaches it.
				if err == nil {
					t.Fatal("answered")
				}
				return
			}
			if got := g.asked.Load(); got != want {
				t.Errorf("the gate was asked about %v, not %s", got, want)
			}
			if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), want+" is blocked by policy: because") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHealthNeedsNoPolicy(t *testing.T) {
	c := agent.NewHealthClient(serve(t, &recordingGate{}, New(Config{Gate: &recordingGate{}, Log: discard()})))
	h, err := c.Check(t.Context(), &agent.CheckRequest{})
	if err != nil || h.GetStatus() != agent.HealthCheckResponse_SERVING {
		t.Fatalf("got %v, %v", h, err)
	}
	v, err := c.Version(t.Context(), &agent.CheckRequest{})
	if err != nil || v.GetAgentVersion() != "test" || v.GetGrpcVersion() != "0.0.1" {
		t.Fatalf("got %v, %v", v, err)
	}
}

func TestMethodThatSkipsDecodingFails(t *testing.T) {
	g := &recordingGate{allow: true}
	info := &ttrpc.UnaryServerInfo{FullMethod: agentPrefix + "CreateSandbox"}
	_, err := gated(g, discard())(t.Context(), func(any) error { return nil }, info, func(context.Context, func(any) error) (any, error) {
		return &agent.Metrics{}, nil
	})
	if err == nil {
		t.Fatal("answered without a decision")
	}
}

func TestUnsupportedMethodsSayWhy(t *testing.T) {
	g := &recordingGate{allow: true}
	client := agent.NewAgentServiceClient(serve(t, g, New(Config{Gate: g, Log: discard()})))
	_, err := client.AddSwap(t.Context(), &agent.AddSwapRequest{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "must not leave the guest") {
		t.Fatalf("got %v", err)
	}
}

func TestErrorCodes(t *testing.T) {
	for want, err := range map[codes.Code]error{
		codes.InvalidArgument: fmt.Errorf("outer: %w", errNoContainer),
		codes.Unimplemented:   unsupported("a", "b"),
		codes.Internal:        errors.New("anything"),
		codes.Canceled:        context.Canceled,
	} {
		if got := status.Code(wireError(err)); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
	policy := &gate.PolicyError{Err: errors.New("x")}
	if status.Code(wireError(policy)) != codes.InvalidArgument {
		t.Error("a policy that does not compile is an invalid argument")
	}
	if wireError(nil) != nil {
		t.Error("success became an error")
	}
}
