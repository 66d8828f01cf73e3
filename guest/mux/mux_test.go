package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

func pair(t *testing.T, ports ...uint32) (*Mux, *yamux.Session, <-chan error) {
	t.Helper()
	guest, host := net.Pipe()
	m, err := New(guest, slog.New(slog.DiscardHandler), ports...)
	if err != nil {
		t.Fatal(err)
	}
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false
	cfg.LogOutput = io.Discard
	client, err := yamux.Client(host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	served := make(chan error, 1)
	go func() { served <- m.Serve(t.Context()) }()
	return m, client, served
}

func open(t *testing.T, s *yamux.Session, port uint32) net.Conn {
	t.Helper()
	c, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, port)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestStreamsReachTheirPort(t *testing.T) {
	m, client, served := pair(t, PortAgent, PortLogs)
	for _, port := range []uint32{PortLogs, PortAgent, PortLogs} {
		c := open(t, client, port)
		s, err := m.Listener(port).Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(s, s)
			s.Close()
		}()
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "ping" {
			t.Fatalf("port %d: %q, %v", port, got, err)
		}
	}
	client.Close()
	if err := <-served; err != nil {
		t.Fatalf("end of channel: %v", err)
	}
	if _, err := m.Listener(PortAgent).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("accept after the end: %v", err)
	}
}

func TestUnknownPortIsClosed(t *testing.T) {
	m, client, _ := pair(t, PortAgent)
	if m.Listener(99) != nil {
		t.Fatal("a listener for a port that is not served")
	}
	c := open(t, client, 99)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

func TestJoin(t *testing.T) {
	a, b := newListener("a"), newListener("b")
	j := Join(a, b)
	for _, l := range []*listener{a, b, a} {
		c, peer := net.Pipe()
		defer peer.Close()
		l.offer(c)
		got, err := j.Accept()
		if err != nil || got != c {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	a.Close()
	b.Close()
	if _, err := j.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestFindVirtioPort(t *testing.T) {
	sys := t.TempDir()
	if _, err := FindVirtioPort(sys, "/dev", PortName); !errors.Is(err, ErrNoPort) {
		t.Fatalf("got %v", err)
	}
	for dir, name := range map[string]string{"vport0p1": "other\n", "vport1p1": PortName + "\n"} {
		p := filepath.Join(sys, "class/virtio-ports", dir)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p, "name"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := FindVirtioPort(sys, "/dev", PortName)
	if err != nil || got != "/dev/vport1p1" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestWaitConnected(t *testing.T) {
	// A pty master reports a hang-up while no one has the other side open, as the virtio port does.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		needs.Missing(t, "pseudo-terminals: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	openPeer := func() *os.File {
		f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			needs.Missing(t, "pseudo-terminals: %v", err)
		}
		return f
	}
	openPeer().Close()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := waitConnected(ctx, fd); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("unconnected: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- waitConnected(t.Context(), fd) }()
	peer := openPeer()
	defer peer.Close()
	if _, err := peer.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
