// Package portforward lets who enters a pod's network namespace and connects to localhost reach the processes in the pod's virtual
// machine.
//
// The container runtime serves `kubectl port-forward` by entering the pod's network namespace and dialling localhost:PORT, first over
// IPv4, then over IPv6. Nothing listens there: the pod's processes are in the guest. So every new TCP connection to a loopback address
// of the namespace is redirected to a listener of ours (rules.go), which asks the kernel for the port that was meant, opens a stream to
// the guest's forwarding port, and carries bytes both ways (relay.go). Connections from elsewhere never meet the rules: they are in the
// output hook, and what comes from outside is handed to the guest before the kernel looks at it (package network).
//
// The stream begins with the port in two bytes, big endian. The guest answers with a zero byte when it is connected, or with the length
// of a text (1 to 255) and the text, which says why not. The client was connected by then, and is told by a reset.
//
// The guest is not trusted: what it says is bounded and quoted, and it can hold no more than its own connections. After a crash of
// this process the rules are left in the namespace, lead to nobody, and go with it; Start replaces them.
package portforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
)

// GuestPort is the port of the guest that streams are opened to.
const GuestPort = 1030

// Defaults of the configuration.
const (
	DefaultMaxConnections = 256
	DefaultDialTimeout    = 10 * time.Second
)

// Config says which namespace to serve, and how the guest is reached.
type Config struct {
	// NetNS is the path of the pod's network namespace.
	NetNS string
	// Dial opens a stream to a port of the guest. Half of it can be closed with CloseWrite, or with the Close of a yamux stream.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
	// Logger gets the reason of each connection that failed; nil is silence.
	Logger *slog.Logger
	// MaxConnections bounds the connections at one time; one more is reset. DefaultMaxConnections when 0.
	MaxConnections int
	// DialTimeout bounds the time in which the guest has to say whether it is connected. DefaultDialTimeout when 0.
	DialTimeout time.Duration
}

// Forwarder serves one namespace.
type Forwarder struct {
	cfg       Config
	ns        *network.Namespace
	listeners []net.Listener
	slots     chan struct{}
	ctx       context.Context // ends with Close
	stop      context.CancelFunc
	running   sync.WaitGroup
	closing   sync.Once
	closed    error
}

// Start redirects connections to the namespace's loopback addresses and serves them until Close; ctx bounds the start only. An error
// that is errors.ErrUnsupported means that this host's kernel cannot redirect: the pod can run without.
func Start(ctx context.Context, cfg Config) (*Forwarder, error) {
	if cfg.Dial == nil || cfg.MaxConnections < 0 || cfg.DialTimeout < 0 {
		return nil, errors.New("forwarding ports: expected a way to dial the guest, and no negative bounds")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	ns, err := network.OpenNamespace(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("forwarding ports: %w", err)
	}
	f := &Forwarder{cfg: cfg, ns: ns, slots: make(chan struct{}, cfg.MaxConnections)}
	if err := ns.Do(func() error { return f.listen(ctx) }); err != nil {
		for _, l := range f.listeners {
			l.Close()
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			err = errors.Join(err, ns.Do(uninstall))
		}
		ns.Close()
		return nil, fmt.Errorf("forwarding ports: %w", err)
	}
	f.ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, l := range f.listeners {
		f.running.Go(func() { f.accept(l) })
	}
	return f, nil
}

// listen makes the listeners and the rules that lead to them. The calling thread is in the namespace, and so are its sockets.
func (f *Forwarder) listen(ctx context.Context) error {
	if err := network.UpLoopback(); err != nil {
		return err
	}
	for _, r := range families {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, r.network, net.JoinHostPort(r.address, "0"))
		if r.network == "tcp6" && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			continue // a namespace, or a kernel, without IPv6
		} else if err != nil {
			return fmt.Errorf("listening in the pod's network: %w", err)
		}
		r.to = uint16(l.Addr().(*net.TCPAddr).Port)
		err = install(r)
		if r.network == "tcp6" && errors.Is(err, errors.ErrUnsupported) {
			// The runtime tries IPv4 first, and the guest tries both.
			f.cfg.Logger.Warn("ports are forwarded over IPv4 only", "error", err)
			l.Close()
			continue
		}
		f.listeners = append(f.listeners, l)
		if err != nil {
			return err
		}
	}
	return nil
}

// Close ends all connections, waits for their end, and takes the rules away.
func (f *Forwarder) Close() error {
	f.closing.Do(func() {
		f.stop()
		for _, l := range f.listeners {
			l.Close()
		}
		f.running.Wait()
		// Last: without the rules, what we send is not translated back, and the clients would not hear of the end.
		if err := f.ns.Do(uninstall); err != nil {
			f.closed = fmt.Errorf("ending the forwarding of ports: %w", err)
		}
		f.ns.Close()
	})
	return f.closed
}

// accept serves a listener until it is closed.
func (f *Forwarder) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if f.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				f.cfg.Logger.Error("forwarding ports ended", "error", err)
			}
			return
		}
		client := conn.(*net.TCPConn)
		select {
		case f.slots <- struct{}{}:
			f.running.Go(func() {
				defer func() { <-f.slots }()
				f.serve(client)
			})
		default:
			f.cfg.Logger.Warn("a forwarded connection was refused: there are too many", "max", f.cfg.MaxConnections)
			reset(client)
		}
	}
}
