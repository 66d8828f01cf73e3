package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Ports of the guest's services, the same on vsock and inside the multiplexer.
const (
	PortAgent uint32 = 1024
	PortLogs  uint32 = 1025
	// PortForward is that of streams to TCP ports of the pod.
	PortForward uint32 = 1030
)

const (
	// prefixTimeout bounds how long an opened stream may stay without naming its port.
	prefixTimeout = 30 * time.Second
	// writeTimeout is generous: a stopped host is not a reason to end the pod.
	writeTimeout = 5 * time.Minute
	// backlog bounds streams that wait for a service to accept them.
	backlog = 64
	window  = 1 << 20
)

// Mux splits one byte channel into ports.
type Mux struct {
	session *yamux.Session
	log     *slog.Logger
	ports   map[uint32]*listener
}

// New starts the multiplexer on conn for the given ports. Streams to other ports are closed.
func New(conn io.ReadWriteCloser, log *slog.Logger, ports ...uint32) (*Mux, error) {
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false // the channel cannot lose its peer silently
	cfg.ConnectionWriteTimeout = writeTimeout
	cfg.MaxStreamWindowSize = window
	cfg.LogOutput = nil
	cfg.Logger = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	session, err := yamux.Server(conn, cfg)
	if err != nil {
		return nil, fmt.Errorf("starting the channel multiplexer: %w", err)
	}
	m := &Mux{session: session, log: log, ports: make(map[uint32]*listener, len(ports))}
	for _, port := range ports {
		m.ports[port] = newListener(addr(fmt.Sprintf("mux:%d", port)))
	}
	return m, nil
}

// Listener returns the listener of a port named to New, or nil.
func (m *Mux) Listener(port uint32) net.Listener {
	if l, ok := m.ports[port]; ok {
		return l
	}
	return nil
}

// Serve dispatches streams until the channel ends (nil) or ctx is done (its error). It closes all listeners.
func (m *Mux) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.session.Close() })
	defer stop()
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() {
		m.session.Close()
		for _, l := range m.ports {
			l.Close()
		}
	}()
	for {
		stream, err := m.session.AcceptStream()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) {
				return nil
			}
			return fmt.Errorf("accepting a stream on the host channel: %w", err)
		}
		streams.Go(func() { m.dispatch(stream) })
	}
}

func (m *Mux) dispatch(stream net.Conn) {
	var prefix [4]byte
	_ = stream.SetReadDeadline(time.Now().Add(prefixTimeout))
	if _, err := io.ReadFull(stream, prefix[:]); err != nil {
		m.log.Warn("stream without port number", "error", err)
		stream.Close()
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	port := binary.BigEndian.Uint32(prefix[:])
	l, ok := m.ports[port]
	if !ok {
		m.log.Warn("stream to a port nobody serves", "port", port)
		stream.Close()
		return
	}
	l.offer(stream)
}

// addr names a listener in logs.
type addr string

func (addr) Network() string  { return "cloister" }
func (a addr) String() string { return string(a) }

// listener hands out connections put into it.
type listener struct {
	addr   addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener(a addr) *listener {
	return &listener{addr: a, conns: make(chan net.Conn, backlog), closed: make(chan struct{})}
}

// offer gives conn to the next Accept, or closes it when the listener is closed.
func (l *listener) offer(conn net.Conn) {
	select {
	case l.conns <- conn:
	case <-l.closed:
		conn.Close()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// Join makes one listener of several. It ends when every one of them has ended; closing it closes them all.
func Join(listeners ...net.Listener) net.Listener {
	j := &joined{listener: newListener("joined"), parts: listeners}
	var open sync.WaitGroup
	for _, part := range listeners {
		open.Go(func() {
			for {
				c, err := part.Accept()
				if err != nil {
					return
				}
				j.offer(c)
			}
		})
	}
	go func() {
		open.Wait()
		j.Close()
	}()
	return j
}

type joined struct {
	*listener
	parts []net.Listener
}

func (j *joined) Close() error {
	var errs []error
	for _, part := range j.parts {
		if err := part.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, j.listener.Close())...)
}
