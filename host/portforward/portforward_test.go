package portforward

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/internal/needs"
)

func start(t *testing.T, cfg Config) *Forwarder {
	t.Helper()
	f, err := Start(t.Context(), cfg)
	if errors.Is(err, errors.ErrUnsupported) {
		needs.Missing(t, "nf_tables in this kernel: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestForward(t *testing.T) {
	for name, dial := range dialers(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			path := newNetns(t)
			var log syncBuffer
			f := start(t, Config{NetNS: path, Dial: dial, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			for kind, host := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"} {
				at := func(port int) *net.TCPConn {
					t.Helper()
					c, err := dialInside(ctx, t, path, kind, net.JoinHostPort(host, fmt.Sprint(port)))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					deadline, _ := ctx.Deadline()
					if err := c.SetDeadline(deadline); err != nil {
						t.Fatal(err)
					}
					return c
				}
				c := at(portEcho)
				if _, err := c.Write([]byte("hello ")); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c); string(got) != "hello end after 6" || err != nil {
					t.Errorf("%s: got %q, %v after half was closed", kind, got, err)
				}
				c = at(portSource)
				body, err := io.ReadAll(c)
				if err != nil || len(body) != sourceSize+sha256.Size {
					t.Fatalf("%s: %d bytes, %v", kind, len(body), err)
				}
				if sum := sha256.Sum256(body[:sourceSize]); !bytes.Equal(sum[:], body[sourceSize:]) {
					t.Errorf("%s: the bytes differ on the way", kind)
				}
				for _, port := range []int{portRefused, portLiar} {
					expectReset(ctx, t, path, kind, net.JoinHostPort(host, fmt.Sprint(port)))
				}
				if got, err := io.ReadAll(at(portBreak)); string(got) != "x" || err != nil {
					t.Errorf("%s: got %q, %v", kind, got, err)
				}
			}
			if text := log.String(); !strings.Contains(text, "connection refused") || strings.Contains(text, "\x1b") {
				t.Errorf("the log is %q, expected the guest's reason without control characters", text)
			}
			// The address of the listener itself is a port of the pod like any other, and 127.0.0.2 is loopback as well.
			own := f.listeners[0].Addr().(*net.TCPAddr).Port
			for _, address := range []string{fmt.Sprintf("127.0.0.1:%d", own), "127.0.0.2:9"} {
				expectReset(ctx, t, path, "tcp4", address)
			}
		})
	}
}

// TestParallel has 100 connections at once, of both families.
func TestParallel(t *testing.T) {
	for name, dial := range dialers(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			path := newNetns(t)
			start(t, Config{NetNS: path, Dial: dial})
			var running sync.WaitGroup
			all := make(chan struct{}) // closed when all are connected
			var connected sync.WaitGroup
			connected.Add(100)
			go func() { connected.Wait(); close(all) }()
			for i := range 100 {
				running.Go(func() {
					kind, host := "tcp4", "127.0.0.1"
					if i%2 == 1 {
						kind, host = "tcp6", "::1"
					}
					c, err := dialInside(ctx, t, path, kind, net.JoinHostPort(host, fmt.Sprint(portEcho)))
					connected.Done()
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					<-all
					want := bytes.Repeat([]byte{byte(i)}, 100_000+i)
					go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
					got, err := io.ReadAll(c)
					if want = append(want, fmt.Sprintf("end after %d", len(want))...); err != nil || !bytes.Equal(got, want) {
						t.Errorf("connection %d: %d bytes, %v, expected %d", i, len(got), err, len(want))
					}
				})
			}
			running.Wait()
		})
	}
}

// TestBounds has a guest that does not answer, more connections than allowed, and an end in the middle.
func TestBounds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dial := dialers(t)["stream"]
	path := newNetns(t)
	hasty := start(t, Config{NetNS: path, Dial: dial, DialTimeout: 50 * time.Millisecond})
	expectReset(ctx, t, path, "tcp4", fmt.Sprintf("127.0.0.1:%d", portMute))
	if err := hasty.Close(); err != nil {
		t.Fatal(err)
	}
	f := start(t, Config{NetNS: path, Dial: dial, MaxConnections: 2})
	var open []*net.TCPConn
	for range 2 {
		c, err := dialInside(ctx, t, path, "tcp4", fmt.Sprintf("127.0.0.1:%d", portEcho))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	expectReset(ctx, t, path, "tcp4", fmt.Sprintf("127.0.0.1:%d", portEcho)) // one too many
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range open {
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an open connection after Close: %v, expected a reset", err)
		}
	}
	if _, err := dialInside(ctx, t, path, "tcp4", fmt.Sprintf("127.0.0.1:%d", portEcho)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Close: %v, expected a refusal", err)
	}
	if n := tables(t, path); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

func tables(t *testing.T, path string) int {
	t.Helper()
	var all []*nftables.Table
	if err := inside(t, path, func() error {
		c, err := nftables.New()
		if err == nil {
			all, err = c.ListTables()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestAgain starts over rules that a process left which was killed.
func TestAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dial := dialers(t)["stream"]
	path := newNetns(t)
	first := start(t, Config{NetNS: path, Dial: dial})
	for _, l := range first.listeners {
		l.Close() // as the kernel does with those of a process that was killed
	}
	if _, err := dialInside(ctx, t, path, "tcp4", "127.0.0.1:7"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after a crash: %v, expected a refusal", err)
	}
	second := start(t, Config{NetNS: path, Dial: dial})
	c, err := dialInside(ctx, t, path, "tcp4", "127.0.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "end after 0" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if n := tables(t, path); n != 2 {
		t.Errorf("%d tables, expected one of each family", n)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWithoutIPv6 has a namespace whose loopback has no IPv6 address.
func TestWithoutIPv6(t *testing.T) {
	path := newNetns(t)
	err := inside(t, path, func() error { // the file is that of the calling thread's namespace
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		needs.Missing(t, "IPv6 in this kernel: %v", err)
	}
	f := start(t, Config{NetNS: path, Dial: dialers(t)["stream"]})
	if len(f.listeners) != 1 {
		t.Errorf("%d listeners, expected one", len(f.listeners))
	}
}

func TestRefusals(t *testing.T) {
	dial := func(context.Context, uint32) (net.Conn, error) { return nil, errors.New("nobody") }
	if _, err := Start(t.Context(), Config{NetNS: "/proc/self/ns/net", Dial: dial}); !errors.Is(err, network.ErrHostNetwork) {
		t.Errorf("got %v, expected ErrHostNetwork", err)
	}
	if _, err := Start(t.Context(), Config{NetNS: "/nowhere", Dial: dial}); !errors.Is(err, network.ErrGone) {
		t.Errorf("got %v, expected ErrGone", err)
	}
	if _, err := Start(t.Context(), Config{NetNS: "/nowhere"}); err == nil {
		t.Error("no way to dial was accepted")
	}
	for _, err := range []error{unix.EPROTONOSUPPORT, os.NewSyscallError("socket", unix.EAFNOSUPPORT), fmt.Errorf("x: %w", unix.ENOENT)} {
		if got := unsupported(err); !errors.Is(got, errors.ErrUnsupported) || !strings.Contains(got.Error(), "hint: ") {
			t.Errorf("%v is %v, expected ErrUnsupported", err, got)
		}
	}
	if got := unsupported(unix.EPERM); errors.Is(got, errors.ErrUnsupported) || !errors.Is(got, unix.EPERM) {
		t.Errorf("got %v", got)
	}
}

// TestHalfOpen gives up a connection of which one side has ended and the other says nothing.
func TestHalfOpen(t *testing.T) {
	a, client := net.Pipe()
	b, guest := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- relay(a, b, 20*time.Millisecond) }()
	client.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("expected an error")
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection is still there")
	}
	guest.Close()
}

// FuzzHandshake has answers of a guest that is not to be trusted.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{3, 'n', 'o', '\n'})
	f.Add([]byte{255, 1})
	f.Fuzz(func(t *testing.T, answer []byte) {
		rw := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(answer), io.Discard}
		if err := handshake(rw, 80); (err == nil) != (len(answer) > 0 && answer[0] == 0) || err != nil && len(err.Error()) > 2000 {
			t.Errorf("%q: %v", answer, err)
		}
	})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
