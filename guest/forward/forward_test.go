package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

type ports map[uint16]bool

func (p ports) AllowPort(_ context.Context, port uint16) error {
	if !p[port] {
		return fmt.Errorf("PortForwardRequest is blocked by policy%s", strings.Repeat(" ä", 300))
	}
	return nil
}

// serve starts a forwarder and returns what opens a stream to a port, with the answer's text.
func serve(t *testing.T, gate ports, own ...uint16) (open func(port uint16) (*net.TCPConn, string), stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(gate, slog.New(slog.DiscardHandler), own...).Serve(ctx, l) }()
	open = func(port uint16) (*net.TCPConn, string) {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		var n [1]byte
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, n[:]); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, n[0])
		if _, err := io.ReadFull(c, text); err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn), string(text)
	}
	return open, func() error { cancel(); return <-done }
}

// listen answers every connection with what it got, once the other side has ended.
func listen(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c)
				_, _ = c.Write(data)
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestForward(t *testing.T) {
	port, own := listen(t), listen(t)
	open, stop := serve(t, ports{port: true, own: true, 1: true}, own)
	c, reason := open(port)
	if reason != "" {
		t.Fatal(reason)
	}
	want := strings.Repeat("both ways ", 100_000)
	go func() {
		_, _ = io.WriteString(c, want)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
	}
	for port, want := range map[uint16]string{own: "belongs to the guest", 0: "belongs to the guest", 2: "blocked by policy", 1: "nothing answers"} {
		if _, reason := open(port); !strings.Contains(reason, want) {
			t.Errorf("port %d: got %q, want %q", port, reason, want)
		}
	}
	idle, _ := open(port)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream outlived the forwarder: %v", err)
	}
}

func TestTooMany(t *testing.T) {
	port := listen(t)
	open, stop := serve(t, ports{port: true})
	var last net.Conn
	for range maxStreams {
		c, reason := open(port)
		if reason != "" {
			t.Fatal(reason)
		}
		last = c
	}
	c, err := net.Dial("tcp", last.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = c.Write(binary.BigEndian.AppendUint16(nil, port))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one stream too many was served: %d, %v", n, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
