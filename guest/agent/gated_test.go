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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
)

// recordingGate refuses everything and remembers what it was asked.
type recordingGate struct {
	asked atomic.Value // last rule
	allow bool
}

func (g *recordingGate) Begin(_ context.Context, rule string, _ proto.Message) (func(context.Context) error, error) {
	g.asked.Store(rule)
	if g.allow {
		return func(context.Context) error { return nil }, nil
	}
	return nil, &gate.DeniedError{Rule: rule, Reasons: []string{"because"}}
}

func (g *recordingGate) AllowRead(context.Context, proto.Message) (bool, error) {
	g.asked.Store("ReadStreamRequest")
	return g.allow, nil
}

func (g *recordingGate) AllowUnsealFile(context.Context, gate.SealedFile) error {
	return g.only("UnsealFileRequest")
}

func (g *recordingGate) AllowUnsealVariable(context.Context, string, string) error {
	return g.only("UnsealVariableRequest")
}

func (g *recordingGate) only(rule string) error {
	_, err := g.Begin(context.Background(), rule, nil)
	return err
}

func (g *recordingGate) Exited(context.Context, string, int) error { return nil }

func (g *recordingGate) SetPolicy(context.Context, string) error {
	_, err := g.Begin(context.Background(), "SetPolicyRequest", nil)
	return err
}

func (g *recordingGate) LoadFragment(context.Context, []byte, time.Time) error {
	_, err := g.Begin(context.Background(), "LoadPolicyFragmentRequest", nil)
	return err
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

// failing is an agent all of whose requests fail.
type failing struct {
	agent.AgentServiceService
	err error
}

func (f *failing) CreateContainer(context.Context, *agent.CreateContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

func (f *failing) CreateSandbox(context.Context, *agent.CreateSandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

func (f *failing) StartContainer(context.Context, *agent.StartContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

func (f *failing) CopyFile(context.Context, *agent.CopyFileRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

func (f *failing) ExecProcess(context.Context, *agent.ExecProcessRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

func (f *failing) RemoveContainer(context.Context, *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.err
}

// TestFailedCreateIsTakenBack has a gate that allows each container once.
func TestFailedCreateIsTakenBack(t *testing.T) {
	policy := `package agent_policy
import rego.v1
default CreateContainerRequest := false
UndoFailedRequests := true
default RemoveContainerRequest := false
CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("", ["/pstate/", input.container_id]), "value": 1}]} if {
	not data.pstate[input.container_id]
}
RemoveContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("", ["/pstate/", input.container_id]), "value": 2}]} if {
	data.pstate[input.container_id] == 1
}`
	g, err := gate.New(policy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	svc := &failing{}
	client := agent.NewAgentServiceClient(serve(t, g, svc))
	create := func(err error) codes.Code {
		svc.err = err
		_, err = client.CreateContainer(t.Context(), &agent.CreateContainerRequest{ContainerId: "c1"})
		return status.Code(err)
	}
	for range 2 {
		if got := create(errors.New("the registry is away")); got != codes.Internal {
			t.Errorf("a create that fails: got %v, expected that it was tried", got)
		}
	}
	if got := create(nil); got != codes.OK {
		t.Errorf("a create after failed ones: got %v", got)
	}
	if got := create(nil); got != codes.PermissionDenied {
		t.Errorf("a second create: got %v, expected a denial", got)
	}
	svc.err = errors.New("busy")
	for _, want := range []codes.Code{codes.Internal, codes.PermissionDenied} { // a removal counts, whatever came of it
		if _, err := client.RemoveContainer(t.Context(), &agent.RemoveContainerRequest{ContainerId: "c1"}); status.Code(err) != want {
			t.Errorf("a removal: got %v, expected %v", err, want)
		}
	}
	for name, err := range map[string]error{
		"remains": fmt.Errorf("cleaning up: %w", container.ErrRemains), "exists": fmt.Errorf("making: %w", container.ErrExists),
	} {
		req := &agent.CreateContainerRequest{ContainerId: name}
		svc.err = err
		_, first := client.CreateContainer(t.Context(), req)
		_, second := client.CreateContainer(t.Context(), req)
		if status.Code(first) == codes.PermissionDenied || status.Code(second) != codes.PermissionDenied {
			t.Errorf("a create that leaves something (%s): got %v, then %v", name, first, second)
		}
	}
}

// counting is a gate that allows all and tells of each decision.
type counting struct {
	recordingGate
	begun chan struct{}
}

// slowCopies is a service whose copies wait for the decision about the next one.
type slowCopies struct {
	agent.AgentServiceService
	begun chan struct{}
	two   atomic.Bool
}

func (c *counting) Begin(context.Context, string, proto.Message) (func(context.Context) error, error) {
	c.begun <- struct{}{}
	return func(context.Context) error { return nil }, nil
}

func (c *slowCopies) CopyFile(context.Context, *agent.CopyFileRequest) (*emptypb.Empty, error) {
	<-c.begun // its own
	select {
	case <-c.begun:
		c.two.Store(true)
		c.begun <- struct{}{}
	case <-time.After(100 * time.Millisecond):
	}
	return &emptypb.Empty{}, nil
}

// TestCopiesOneByOne: what was decided about a copy can be taken back when it fails, as nothing about the same files was decided since.
func TestCopiesOneByOne(t *testing.T) {
	begun := make(chan struct{}, 2)
	c := &slowCopies{begun: begun}
	client := agent.NewAgentServiceClient(serve(t, &counting{begun: begun}, c))
	var copies sync.WaitGroup
	for range 2 {
		copies.Go(func() {
			if _, err := client.CopyFile(t.Context(), &agent.CopyFileRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	copies.Wait()
	if c.two.Load() {
		t.Error("a copy was decided on while another was made")
	}
}

// TestWhatFailureTakesBack has a gate that allows each kind of request once.
func TestWhatFailureTakesBack(t *testing.T) {
	policy := "package agent_policy\nimport rego.v1\nUndoFailedRequests := true\n"
	for _, kind := range []string{"CreateSandboxRequest", "StartContainerRequest", "CopyFileRequest", "ExecProcessRequest", "RemoveContainerRequest"} {
		policy += fmt.Sprintf("default %s := false\n%[1]s := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/%[1]s\", \"value\": 1}]} if not data.pstate.%[1]s\n", kind)
	}
	for _, tc := range []struct {
		name string
		ask  func(c agent.AgentServiceService) error
		err  error
		back bool
	}{
		{"sandbox", func(c agent.AgentServiceService) error {
			_, err := c.CreateSandbox(t.Context(), &agent.CreateSandboxRequest{})
			return err
		}, errors.New("full"), true},
		{"start", func(c agent.AgentServiceService) error {
			_, err := c.StartContainer(t.Context(), &agent.StartContainerRequest{})
			return err
		}, errors.New("no such program"), true},
		{"start of what runs", func(c agent.AgentServiceService) error {
			_, err := c.StartContainer(t.Context(), &agent.StartContainerRequest{})
			return err
		}, container.ErrState, false},
		{"file", func(c agent.AgentServiceService) error {
			_, err := c.CopyFile(t.Context(), &agent.CopyFileRequest{})
			return err
		}, errors.New("full"), true},
		{"exec", func(c agent.AgentServiceService) error {
			_, err := c.ExecProcess(t.Context(), &agent.ExecProcessRequest{})
			return err
		}, errors.New("late"), false},
		{"removal", func(c agent.AgentServiceService) error {
			_, err := c.RemoveContainer(t.Context(), &agent.RemoveContainerRequest{})
			return err
		}, errors.New("busy"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, err := gate.New(policy, gate.Options{})
			if err != nil {
				t.Fatal(err)
			}
			c := agent.NewAgentServiceClient(serve(t, g, &failing{err: tc.err}))
			if got := status.Code(tc.ask(c)); got == codes.OK || got == codes.PermissionDenied {
				t.Fatalf("got %v, expected a failure", got)
			}
			if got := status.Code(tc.ask(c)); (got != codes.PermissionDenied) != tc.back {
				t.Errorf("the next one: got %v, expected that it is tried: %v", got, tc.back)
			}
		})
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
