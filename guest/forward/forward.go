// Package forward connects streams of the host with TCP ports of the pod. A stream begins with the port, two bytes, big
// endian. The answer is a zero byte, after which bytes flow both ways and each side may end first; or the length of a
// text, one byte, and the text, which says why not. The policy decides about each port, and the guest's own services,
// which trust what comes from loopback, are out of reach.
package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxStreams bounds what runs at the same time.
	maxStreams = 128
	// startTimeout bounds how long a stream may take to say where it goes, connectTimeout how long to get there.
	startTimeout   = 10 * time.Second
	connectTimeout = 10 * time.Second
	maxReason      = 255
)

// Gate decides about ports.
type Gate interface {
	AllowPort(ctx context.Context, port uint16) error
}

// Forwarder serves streams.
type Forwarder struct {
	gate  Gate
	log   *slog.Logger
	own   []uint16
	slots chan struct{}
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
}

// New makes a forwarder. own are the ports of the guest's services.
func New(gate Gate, log *slog.Logger, own ...uint16) *Forwarder {
	d := net.Dialer{Timeout: connectTimeout}
	return &Forwarder{gate: gate, log: log, own: own, slots: make(chan struct{}, maxStreams), dial: d.DialContext}
}

// Serve serves streams until ctx ends (nil) or the listener fails.
func (f *Forwarder) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("serving port forwarding: %w", err)
		}
		select {
		case f.slots <- struct{}{}:
		default:
			f.log.Warn("port forwarding refused", "reason", "too many streams")
			c.Close()
			continue
		}
		streams.Go(func() {
			defer func() { <-f.slots }()
			defer c.Close()
			f.stream(ctx, c)
		})
	}
}

func (f *Forwarder) stream(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { wake(c) })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(startTimeout))
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		f.log.Warn("port forwarding without a port", "error", err)
		return
	}
	port := binary.BigEndian.Uint16(head[:])
	to, err := f.connect(ctx, port)
	_ = c.SetDeadline(time.Now().Add(startTimeout))
	if err != nil {
		f.log.Warn("port forwarding refused", "port", port, "error", err)
		reason := strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxReason)], "")
		_, _ = c.Write(append([]byte{byte(len(reason))}, reason...))
		return
	}
	defer to.Close()
	if _, err := c.Write([]byte{0}); err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	if ctx.Err() != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { wake(to) })()
	join(c, to)
}

// connect asks the policy and connects.
func (f *Forwarder) connect(ctx context.Context, port uint16) (net.Conn, error) {
	if port == 0 || slices.Contains(f.own, port) {
		return nil, fmt.Errorf("port %d belongs to the guest", port)
	}
	if err := f.gate.AllowPort(ctx, port); err != nil {
		return nil, err
	}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := f.dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("nothing answers on port %d: %w", port, errs[0])
}

// join copies both ways until both sides have ended. An end of one side is passed on; a failure ends both.
func join(a, b net.Conn) {
	one := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil {
			wake(a)
			wake(b)
		}
		closeWrite(to)
	}
	var back sync.WaitGroup
	back.Go(func() { one(a, b) })
	one(b, a)
	back.Wait()
}

// closeWrite tells the other side that no more comes. A stream of the multiplexer can still be read after it was closed.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
		return
	}
	_ = c.Close()
}

// wake ends reads and writes that wait.
func wake(c net.Conn) { _ = c.SetDeadline(time.Unix(1, 0)) }
