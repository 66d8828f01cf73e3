// Package manage is the management socket of a sandbox: HTTP on a unix socket in the sandbox's state directory, for who is root on the
// node (runtime-shim.md section 23).
//
//	GET  /metrics                      Prometheus text: shim, machine monitor and helpers, calls of the agent, and the guest
//	GET  /agent-url                    where the guest's agent is
//	PUT  /policy                       a new policy for the guest, when its policy lets it be set
//	POST /policy-fragments             a signed fragment for the guest's policy, which checks it
//	GET  /direct-volume/stats?path=P   sizes of a volume, by its path on the node (POST is the same)
//	POST /direct-volume/resize         {"VolumePath": P, "Size": bytes}
//	GET, PUT /iptables, /ip6tables     the guest's packet filter; the guest says whether it has one
//	GET  /debug/pprof/                 profiles of the shim, when the configuration has them
//
// What a confidential guest allows is decided in the guest. What it answers is not trusted here: sizes are bounded, texts are cleaned,
// and its metrics cannot stand for those of the host.
package manage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// SocketName is the name of the socket in the state directory. With the longest state directory under the namespace k8s.io its path has
// 107 bytes, the most that a socket's address takes; Dial reaches longer ones.
const SocketName = "manage.sock"

// Bounds of the server.
const (
	maxConnections = 16
	headTimeout    = 10 * time.Second
	closeTimeout   = 2 * time.Second
	// DefaultTimeout bounds a call of the agent.
	DefaultTimeout = time.Minute
)

// Agent is what the socket needs from the guest's agent.
type Agent interface {
	GetMetrics(context.Context, *agent.GetMetricsRequest) (*agent.Metrics, error)
	SetPolicy(context.Context, *agent.SetPolicyRequest) (*emptypb.Empty, error)
	LoadPolicyFragment(context.Context, *agent.LoadPolicyFragmentRequest) (*emptypb.Empty, error)
	GetVolumeStats(context.Context, *agent.VolumeStatsRequest) (*agent.VolumeStatsResponse, error)
	ResizeVolume(context.Context, *agent.ResizeVolumeRequest) (*emptypb.Empty, error)
	GetIPTables(context.Context, *agent.GetIPTablesRequest) (*agent.GetIPTablesResponse, error)
	SetIPTables(context.Context, *agent.SetIPTablesRequest) (*agent.SetIPTablesResponse, error)
}

// Process is a process of the sandbox on the host.
type Process struct {
	// Role is "hypervisor", "virtiofsd", or another word of small letters for a helper; it is in the names of the metrics.
	Role string
	PID  int
}

// Config says what the socket tells and reaches.
type Config struct {
	// Dir is the state directory of the sandbox, which exists. The socket is in it, with mode 0600.
	Dir string
	// Link, when not empty, is a symbolic link to the socket, where others look for it: /run/kata/ID/shim-monitor.sock.
	Link string
	// Agent returns the connection to the agent, nil while there is none.
	Agent func() Agent
	// AgentURL is where the agent is: vsock://CID:1024 or hvsock://PATH:1024.
	AgentURL string
	// Processes are those of the sandbox besides the shim.
	Processes func() []Process
	// Volume finds the path in the guest of a volume by its path on the node. Without it there are no volumes.
	Volume func(path string) (guestPath string, err error)
	// Durations, when not nil, are shown in the metrics.
	Durations *Durations
	// Timeout bounds each call of the agent, DefaultTimeout when 0.
	Timeout time.Duration
	// Profiles shows profiles of this process.
	Profiles bool
	// Logger gets what changes the guest; nil is silence.
	Logger *slog.Logger
}

// Server is the open socket.
type Server struct {
	cfg   Config
	dir   *os.File // of the state directory
	http  *http.Server
	ended chan struct{}
}

// Start opens the socket and serves it until Close; ctx bounds the start only. A socket that a crash has left is replaced.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg.Dir == "" || cfg.Agent == nil || cfg.Timeout < 0 {
		return nil, errors.New("opening the management socket: expected a directory, an agent and no negative time")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Durations == nil {
		cfg.Durations = &Durations{}
	}
	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the management socket: %w", err)
	}
	s := &Server{cfg: cfg, dir: dir, ended: make(chan struct{})}
	l, err := s.listen(ctx)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("opening the management socket: %w", err)
	}
	s.http = &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headTimeout, ReadTimeout: cfg.Timeout, IdleTimeout: cfg.Timeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(s.ended)
		if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("the management socket failed", "error", err)
		}
	}()
	return s, nil
}

// listen binds the socket by way of an open directory, because the address of a socket is shorter than paths may be.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	path := pathIn(s.dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600)
	if err == nil && s.cfg.Link != "" {
		err = link(s.cfg.Link, filepath.Join(s.cfg.Dir, SocketName))
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return &limited{Listener: l, slots: make(chan struct{}, maxConnections)}, nil
}

// Close ends the server, waits a moment for answers that are on their way, and removes the socket and the link.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
	}
	<-s.ended
	err := Cleanup(s.cfg.Dir, s.cfg.Link)
	s.dir.Close()
	return err
}

// Cleanup removes what a server left that was killed: the socket, and the link with its directory. It may be called again.
func Cleanup(dir, link string) error {
	var errs []error
	if err := os.Remove(filepath.Join(dir, SocketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if link != "" {
		errs = append(errs, unlink(link, filepath.Join(dir, SocketName)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the management socket: %w", err)
	}
	return nil
}

// Dial connects to the socket in a state directory.
func Dial(ctx context.Context, dir string) (net.Conn, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("connecting to the management socket: %w", err)
	}
	defer d.Close()
	c, err := new(net.Dialer).DialContext(ctx, "unix", pathIn(d))
	if err != nil {
		return nil, fmt.Errorf("connecting to the management socket of %s: %w", dir, err)
	}
	return c, nil
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func pathIn(dir *os.File) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), SocketName)
}

// link makes the link, and replaces one that is ours or leads nowhere. Something else with this name stays: then it is an error.
func link(path, target string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	old, err := os.Readlink(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%s belongs to somebody else: %w", path, err)
	default:
		if _, err := os.Stat(path); old != target && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s leads to %s, which belongs to somebody else", path, old)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return os.Symlink(target, path)
}

// unlink removes our link and its directory, when that is empty then.
func unlink(path, target string) error {
	if old, err := os.Readlink(path); err == nil && old == target {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err := os.Remove(filepath.Dir(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// limited accepts no more connections than there are slots.
type limited struct {
	net.Listener
	slots chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: c, slots: l.slots}, nil
		default:
			c.Close()
		}
	}
}

type slotConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *slotConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}
