// Package fakeguest is a guest without a machine: it serves the agent's protocol on one end of a connection, in the same multiplexed
// streams as the real guest, and runs Go functions where the real one runs containers. With it the host is tested in milliseconds.
package fakeguest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

// Program is what a container or an exec runs. It returns the exit code. ctx ends with SIGKILL.
type Program func(ctx context.Context, p *Process) int

// Guest is a fake guest. Its fields are set before Serve.
type Guest struct {
	// Programs are the containers' programs by container id, without the number of a restart; one that is missing exits with
	// 0 at once.
	Programs map[string]Program
	// Exec is run by ExecProcess.
	Exec Program
	// Denied maps a request's name, for example "CreateContainerRequest", to the text of the denial.
	Denied map[string]string
	// Gate, when not nil, decides about each request as the real guest's does.
	Gate Gate
	// Log is sent on the log port.
	Log string
	// Ports are the services that port forwarding reaches; any other port answers as one where nobody listens.
	Ports map[uint16]func(net.Conn)
	// Block, when not nil for a request's name, holds the request until the channel is closed.
	Block map[string]chan struct{}
	// Hook, when not nil, is called with each request's name before anything else is done about it; its error is the answer.
	Hook func(ctx context.Context, name string) error
	// OOM are the containers that GetOOMEvent names, one for each request; nil holds the request.
	OOM <-chan string

	mu        sync.Mutex
	calls     []string
	files     map[string][]byte
	processes map[string]*Process
	session   *yamux.Session
}

// Gate is the part of the guest's policy engine that requests meet.
type Gate interface {
	Allow(ctx context.Context, rule string, req proto.Message) error
	Exited(ctx context.Context, containerID string, status int) error
}

// Serve serves the guest until the connection ends or the sandbox is destroyed.
func (g *Guest) Serve(conn net.Conn) error {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.LogOutput = io.Discard
	session, err := yamux.Server(conn, c)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.session = session
	g.mu.Unlock()
	defer session.Close()
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	defer srv.Close()
	agent.RegisterAgentServiceService(srv, service{guest: g})
	agent.RegisterHealthService(srv, health{g})
	streams := &listener{conns: make(chan net.Conn), done: make(chan struct{}), addr: conn.LocalAddr()}
	defer streams.Close()
	go func() { _ = srv.Serve(context.Background(), streams) }()
	for {
		stream, err := session.Accept()
		if err != nil {
			g.killAll()
			return nil
		}
		go g.route(stream, streams)
	}
}

// route reads the port a stream is for.
func (g *Guest) route(stream net.Conn, agentStreams *listener) {
	var prefix [4]byte
	if _, err := io.ReadFull(stream, prefix[:]); err != nil {
		stream.Close()
		return
	}
	switch binary.BigEndian.Uint32(prefix[:]) {
	case 1024:
		select {
		case agentStreams.conns <- stream:
		case <-agentStreams.done:
			stream.Close()
		}
	case 1025:
		_, _ = io.WriteString(stream, g.Log)
		stream.Close()
	case 1030:
		g.forward(stream)
	default:
		stream.Close()
	}
}

// forward answers as the guest's port forwarding does.
func (g *Guest) forward(stream net.Conn) {
	defer stream.Close()
	var head [2]byte
	if _, err := io.ReadFull(stream, head[:]); err != nil {
		return
	}
	service := g.Ports[binary.BigEndian.Uint16(head[:])]
	reason := g.Denied["PortForwardRequest"]
	if reason == "" && service == nil {
		reason = "nothing answers on this port"
	}
	if _, err := stream.Write(append([]byte{byte(len(reason))}, reason...)); err != nil || reason != "" {
		return
	}
	service(stream)
}

// Calls returns the names of the requests so far, without reads and waits.
func (g *Guest) Calls() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.calls...)
}

// File returns a file that was copied into the guest.
func (g *Guest) File(path string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.files[path]
}

// Crash ends the connection without a word.
func (g *Guest) Crash() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session != nil {
		g.session.Close()
	}
}

func (g *Guest) killAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.processes {
		p.cancel()
	}
}

// enter records a request, holds it if told so, and says whether it is denied.
func (g *Guest) enter(ctx context.Context, name string, req proto.Message) error {
	if err := g.hold(ctx, name); err != nil {
		return err
	}
	return g.judge(ctx, name, req)
}

// hold is enter for requests that no policy is asked about.
func (g *Guest) hold(ctx context.Context, name string) error {
	g.mu.Lock()
	g.calls = append(g.calls, name)
	text, denied := g.Denied[name]
	block := g.Block[name]
	g.mu.Unlock()
	if g.Hook != nil {
		if err := g.Hook(ctx, name); err != nil {
			return err
		}
	}
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if denied {
		return status.Error(codes.PermissionDenied, text)
	}
	return nil
}

// judge asks the gate, if there is one.
func (g *Guest) judge(ctx context.Context, name string, req proto.Message) error {
	if g.Gate == nil {
		return nil
	}
	if err := g.Gate.Allow(ctx, name, req); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// SetProgram is how Programs is changed while the guest runs.
func (g *Guest) SetProgram(id string, p Program) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.Programs[id] = p
}

// SetDenied is how Denied is changed while the guest runs; an empty text takes the denial back.
func (g *Guest) SetDenied(request, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Denied == nil {
		g.Denied = map[string]string{}
	}
	g.Denied[request] = text
	if text == "" {
		delete(g.Denied, request)
	}
}

// program is what a container runs: that of its id, or of the id that it is a restart of.
func (g *Guest) program(id string) Program {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, ok := g.Programs[id]; ok {
		return p
	}
	if i := strings.LastIndex(id, "-r"); i > 0 {
		return g.Programs[id[:i]]
	}
	return nil
}

type health struct{ g *Guest }

func (h health) Check(ctx context.Context, _ *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{Status: agent.HealthCheckResponse_SERVING}, h.g.hold(ctx, "Check")
}

func (h health) Version(context.Context, *agent.CheckRequest) (*agent.VersionCheckResponse, error) {
	return &agent.VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: "fake"}, nil
}

// listener hands streams to the ttrpc server.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, errors.New("closed")
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
