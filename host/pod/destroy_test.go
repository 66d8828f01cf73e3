package pod

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	client "github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/wire/agent"
)

// polite is a guest that answers and then waits for its client to leave, as ours does.
type polite struct{ agent.AgentServiceService }

func (polite) DestroySandbox(context.Context, *agent.DestroySandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// watchedConn calls gone at the end of the connection.
type watchedConn struct {
	net.Conn
	gone func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

type watchedListener struct {
	net.Listener
	gone func()
}

func (l *watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{c, l.gone}, nil
}

// TestDestroyLeaves has a guest that ends when the client has closed its connection.
func TestDestroyLeaves(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	agent.RegisterAgentServiceService(srv, polite{})
	vm := &fakeVM{exited: make(chan struct{})}
	var once sync.Once
	go func() {
		_ = srv.Serve(context.Background(), &watchedListener{l, func() { once.Do(func() { close(vm.exited) }) }})
	}()
	t.Cleanup(func() { srv.Close() })
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{opts: Options{}, vm: vm, agent: client.New(conn, nil), state: &stateKeeper{}}
	s.opts.Logger = slog.New(slog.DiscardHandler)
	s.state.update(func(x *State) { x.Events = []Event{{Step: StepSandbox}} })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.destroySandbox(ctx)
	select {
	case <-vm.exited:
	default:
		t.Error("the connection was kept until the guest's patience ended")
	}
}
