package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// drainTime is how long answers under way, as that to Shutdown itself, may take after the end was asked for.
const drainTime = 2 * time.Second

// answerTime is how long the answer to the call that asked for the end may take.
const answerTime = 500 * time.Millisecond

// Server is the long-lived end of a shim: it listens on the socket that start made.
type Server struct {
	Params Params
	Log    io.Writer // containerd's log; never blocks, drops what is not read

	stop    chan struct{}
	once    sync.Once
	idle    time.Duration
	busy    func() bool
	wrote   chan struct{} // gets something with each write to a peer, while somebody waits for it
	calls   chan int      // +1 at the begin of a call, -1 at its end; nil without idle
	newFile func() (*os.File, error)
}

func newServer(p Params, w io.Writer) *Server {
	return &Server{Params: p, Log: w, stop: make(chan struct{}), wrote: make(chan struct{}),
		newFile: func() (*os.File, error) { return os.NewFile(3, "socket"), nil }}
}

// Shutdown makes Run end: answers under way are sent first. It returns at once and may be called more than once, also by a method of a service.
func (s *Server) Shutdown() { s.once.Do(func() { close(s.stop) }) }

// Idle makes Run end when for the given time no call came or was under way and busy says that nothing is kept, as when containerd died
// between starting the shim and making a container. It is called before Run.
func (s *Server) Idle(after time.Duration, busy func() bool) { s.idle, s.busy = after, busy }

// Run serves until Shutdown, SIGTERM, SIGINT or the end of ctx, and then removes the socket. register adds the services. SIGUSR1 writes all
// stacks to the log. Only processes of the same user are served.
func (s *Server) Run(ctx context.Context, register func(*ttrpc.Server) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := s.listener(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	s.calls = make(chan int, 16)
	srv, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(s), ttrpc.WithUnaryServerInterceptor(s.count(ctx)))
	if err != nil {
		return fmt.Errorf("making the shim's server: %w", err)
	}
	if err := register(srv); err != nil {
		return fmt.Errorf("registering the shim's services: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(ctx), l) }() // calls under way outlive the signal
	go s.watchIdle(ctx)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGPIPE)
	defer signal.Stop(signals)
	for {
		select {
		case sig := <-signals:
			switch sig {
			case unix.SIGUSR1:
				s.dumpStacks()
				continue
			case unix.SIGPIPE: // a peer that is gone is an error of the write, not the end
				continue
			}
			fmt.Fprintf(s.Log, "level=info msg=\"shim ends: %s\"\n", sig)
		case <-s.stop:
			s.lastAnswer(ctx)
		case <-ctx.Done():
		case err := <-served:
			s.removeSocket()
			return fmt.Errorf("serving containerd: %w", err)
		}
		return s.drain(srv)
	}
}

// Handshake takes processes of the same user only (ttrpc.Handshaker), and notes what is written to them.
func (s *Server) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	c, creds, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	return &answered{Conn: c, wrote: s.wrote}, creds, nil
}

// answered tells of each write.
type answered struct {
	net.Conn
	wrote chan struct{}
}

func (a *answered) Write(p []byte) (int, error) {
	n, err := a.Conn.Write(p)
	select {
	case a.wrote <- struct{}{}:
	default: // nobody wants to know
	}
	return n, err
}

// lastAnswer waits for the answer to the call that asked for the end: the library may close the connection before it has been written.
func (s *Server) lastAnswer(ctx context.Context) {
	t := time.NewTimer(answerTime)
	defer t.Stop()
	select {
	case <-s.wrote:
	case <-t.C: // nobody has asked by a call
	case <-ctx.Done():
	}
}

// drain removes the socket first, while nobody else can have made one of the same name, and then stops.
func (s *Server) drain(srv *ttrpc.Server) error {
	s.removeSocket()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		srv.Close()
		return fmt.Errorf("ending the shim's server: %w", err)
	}
	srv.Close()
	return nil
}

func (s *Server) address() string {
	if s.Params.Socket != "" {
		return "unix://" + s.Params.Socket
	}
	return SocketAddress(s.Params.SocketDir, s.Params.Address, s.Params.Namespace, s.Params.SandboxID)
}

func (s *Server) removeSocket() {
	if path, err := socketPath(s.address()); err == nil {
		os.Remove(path)
	}
}

func (s *Server) listener(ctx context.Context) (net.Listener, error) {
	if s.Params.Socket != "" {
		return listen(ctx, "unix://"+s.Params.Socket)
	}
	f, err := s.newFile()
	if err != nil {
		return nil, fmt.Errorf("taking the shim's socket: %w", err)
	}
	defer f.Close()
	unix.CloseOnExec(int(f.Fd()))
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("taking the shim's socket: %w\nhint: the server is started by the verb start, with the socket as descriptor 3", err)
	}
	return l, nil
}

// count tells watchIdle of calls.
func (s *Server) count(ctx context.Context) ttrpc.UnaryServerInterceptor {
	tell := func(n int) {
		select {
		case s.calls <- n:
		case <-ctx.Done():
		}
	}
	return func(callCtx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		tell(1)
		defer tell(-1)
		return method(callCtx, unmarshal)
	}
}

func (s *Server) watchIdle(ctx context.Context) {
	var expired <-chan time.Time
	var timer *time.Timer
	if s.idle > 0 {
		timer = time.NewTimer(s.idle)
		defer timer.Stop()
		expired = timer.C
	}
	running := 0
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-s.calls:
			running += n
			if timer != nil {
				timer.Reset(s.idle)
			}
		case <-expired:
			if running == 0 && !s.busy() {
				fmt.Fprintf(s.Log, "level=info msg=\"shim ends: nothing to do for %s\"\n", s.idle)
				s.Shutdown()
				return
			}
			timer.Reset(s.idle)
		}
	}
}

func (s *Server) dumpStacks() {
	b := make([]byte, 1<<20)
	b = b[:runtime.Stack(b, true)]
	for len(b) > 0 { // a pipe takes 4096 bytes at once
		n := min(len(b), 4096)
		s.Log.Write(b[:n])
		b = b[n:]
	}
}

// serverOptions reads what start gave the server as stdin.
func (p *Params) serverOptions(r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, maxStdin+1))
	if err != nil || len(data) == 0 {
		return nil // started by hand, with -socket
	}
	var o anypb.Any
	if err := proto.Unmarshal(data, &o); err != nil {
		return fmt.Errorf("reading runtime options from start: %w", err)
	}
	p.Options = &o
	return nil
}
