package portforward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

const (
	bufferSize = 32 << 10
	// halfOpenIdle is how long a connection of which one direction has ended may be silent in the other. A client that has gone cannot be
	// told from one that has only nothing more to say.
	halfOpenIdle = 10 * time.Minute
)

// serve carries one connection.
func (f *Forwarder) serve(client *net.TCPConn) {
	defer context.AfterFunc(f.ctx, func() { reset(client) })()
	port, err := originalPort(client)
	if err != nil {
		f.cfg.Logger.Warn("a forwarded connection failed", "error", err)
		reset(client)
		return
	}
	guest, err := f.connect(port)
	if err != nil {
		f.cfg.Logger.Info("a forwarded connection failed", "port", port, "error", err)
		reset(client)
		return
	}
	defer guest.Close()
	defer context.AfterFunc(f.ctx, func() { abandon(guest) })()
	if err := relay(client, guest, halfOpenIdle); err != nil {
		f.cfg.Logger.Debug("a forwarded connection broke", "port", port, "error", err)
		reset(client)
		return
	}
	client.Close()
}

// connect opens a stream to a port of the pod.
func (f *Forwarder) connect(port uint16) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(f.ctx, f.cfg.DialTimeout)
	defer cancel()
	guest, err := f.cfg.Dial(ctx, GuestPort)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			guest.Close()
		}
	}()
	stopped := context.AfterFunc(ctx, func() { abandon(guest) })
	defer stopped()
	if err := handshake(guest, port); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("asking the guest for port %d: %w", port, ctx.Err())
		}
		return nil, err
	}
	if !stopped() {
		return nil, fmt.Errorf("asking the guest for port %d: %w", port, ctx.Err())
	}
	return guest, nil
}

// handshake names the port and hears whether the guest is connected to it.
func handshake(guest io.ReadWriter, port uint16) error {
	var head [2]byte
	binary.BigEndian.PutUint16(head[:], port)
	if _, err := guest.Write(head[:]); err != nil {
		return fmt.Errorf("asking the guest for port %d: %w", port, err)
	}
	var text [256]byte
	if _, err := io.ReadFull(guest, text[:1]); err != nil {
		return fmt.Errorf("asking the guest for port %d: %w", port, err)
	}
	if text[0] == 0 {
		return nil
	}
	said := text[1 : 1+int(text[0])]
	if n, err := io.ReadFull(guest, said); err != nil {
		return fmt.Errorf("asking the guest for port %d: an answer that ends after %d of %d bytes: %w", port, n, len(said), err)
	}
	return fmt.Errorf("the guest refused port %d: %q", port, said)
}

// relay carries bytes both ways until both directions have ended, or one has failed.
func relay(a, b net.Conn, idle time.Duration) error {
	var half atomic.Bool
	var running sync.WaitGroup
	var back error
	carry := func(to, from net.Conn) error {
		err := carry(to, from, &half, idle)
		if err != nil {
			// The other direction ends with it.
			abandon(a)
			abandon(b)
		}
		return err
	}
	running.Go(func() { back = carry(b, a) })
	there := carry(a, b)
	running.Wait()
	return errors.Join(there, back)
}

// carry carries one direction, and its end.
func carry(to, from net.Conn, half *atomic.Bool, idle time.Duration) error {
	buf := make([]byte, bufferSize)
	for {
		if half.Load() {
			if err := from.SetReadDeadline(time.Now().Add(idle)); err != nil {
				return err
			}
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if err := closeWrite(to); err != nil {
				return err
			}
			if half.Swap(true) {
				return nil
			}
			// The other direction may be reading already, without a deadline.
			return to.SetReadDeadline(time.Now().Add(idle))
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("one side has ended, and the other was silent for %s: %w", idle, err)
		case err != nil:
			return err
		}
	}
}

// closeWrite says that nothing more comes, and leaves the way back open.
func closeWrite(c net.Conn) error {
	switch c := c.(type) {
	case interface{ CloseWrite() error }:
		err := c.CloseWrite()
		if errors.Is(err, unix.ENOTCONN) { // the other side has closed it altogether
			return nil
		}
		return err
	case *yamux.Stream:
		return c.Close() // reading goes on
	}
	return c.Close()
}

// abandon ends what waits for the connection. A multiplexed stream that is closed can still be read; a client must not take it for an
// end.
func abandon(c net.Conn) {
	_ = c.SetDeadline(time.Unix(1, 0))
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// reset closes the connection so that the other side sees an error and no end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

// originalPort is the port that the client has connected to, before it was redirected.
func originalPort(c *net.TCPConn) (uint16, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("looking up the port that was meant: %w", err)
	}
	var port [2]byte
	var failed error
	err = raw.Control(func(fd uintptr) {
		// The option is 80 in both families and gives a socket address, whose second two bytes are the port. The structures are those
		// of other options that have room for it.
		if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			v, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
			if failed = err; err == nil {
				copy(port[:], v.Multiaddr[2:4])
			}
			return
		}
		v, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST)
		if failed = err; err == nil {
			binary.NativeEndian.PutUint16(port[:], v.Addr.Port)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, fmt.Errorf("looking up the port that was meant: %w", err)
	}
	return binary.BigEndian.Uint16(port[:]), nil
}
