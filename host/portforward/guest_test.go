package portforward

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/internal/needs"
)

// newNetns makes a network namespace in which loopback is down, which goes with the test.
func newNetns(t *testing.T) string {
	t.Helper()
	needs.Root(t, "network namespaces")
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}); err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// onThread calls fn on a thread that ends afterwards.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the first thread cannot end
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}

// inside calls fn on a thread in the namespace.
func inside(t *testing.T, path string, fn func() error) error {
	t.Helper()
	ns, err := network.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.Do(fn)
}

func dialInside(ctx context.Context, t *testing.T, path, kind, address string) (*net.TCPConn, error) {
	t.Helper()
	var c net.Conn
	err := inside(t, path, func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, kind, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// expectReset connects to who is not there. The reset may come before the client has seen that it is connected.
func expectReset(ctx context.Context, t *testing.T, path, kind, address string) {
	t.Helper()
	c, err := dialInside(ctx, t, path, kind, address)
	if err == nil {
		_, err = io.ReadAll(c)
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: got %v, expected a reset", address, err)
	}
}

// Ports of the fake guest.
const (
	portEcho    = 7    // echoes, and says how much it was when the client has said everything
	portRefused = 9    // nobody listens
	portSource  = 19   // sends many bytes and their digest
	portMute    = 4000 // takes the request and never answers
	portBreak   = 4001 // connects, and ends without a word in the middle
	portLiar    = 4002 // half an answer
)

const sourceSize = 32 << 20

// guestMain is the guest's side of one stream.
func guestMain(c net.Conn) {
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		c.Close()
		return
	}
	switch port := binary.BigEndian.Uint16(head[:]); port {
	case portEcho:
		_, _ = c.Write([]byte{0})
		n, _ := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		fmt.Fprintf(c, "end after %d", n)
	case portSource:
		_, _ = c.Write([]byte{0})
		sum, block := sha256.New(), make([]byte, 64<<10)
		for i := range sourceSize / len(block) {
			block[i%len(block)] = byte(i)
			sum.Write(block)
			if _, err := c.Write(block); err != nil {
				break
			}
		}
		_, _ = c.Write(sum.Sum(nil))
	case portMute:
		return // left open
	case portBreak:
		_, _ = c.Write([]byte{0, 'x'})
	case portLiar:
		_, _ = c.Write([]byte{200, 'x'})
	default:
		text := fmt.Sprintf("port %d: \x1b[31mconnection refused", port)
		_, _ = c.Write(append([]byte{byte(len(text))}, text...))
	}
	c.Close()
}

// dialers are ways to a guest: one stream that knows half-close, and the multiplexer.
func dialers(t *testing.T) map[string]func(context.Context, uint32) (net.Conn, error) {
	t.Helper()
	pair := func() (net.Conn, net.Conn) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "guest")
			if conns[i], err = net.FileConn(f); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		return conns[0], conns[1]
	}
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	ours, theirs := pair()
	client, err := yamux.Client(ours, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server, err := yamux.Server(theirs, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	go func() {
		for {
			s, err := server.AcceptStream()
			if err != nil {
				return
			}
			go guestMain(s)
		}
	}()
	check := func(port uint32) error {
		if port != GuestPort {
			return fmt.Errorf("guest port %d was dialled, expected %d", port, GuestPort)
		}
		return nil
	}
	return map[string]func(context.Context, uint32) (net.Conn, error){
		"stream": func(_ context.Context, port uint32) (net.Conn, error) {
			a, b := pair()
			go guestMain(b)
			return a, check(port)
		},
		"multiplexed": func(_ context.Context, port uint32) (net.Conn, error) {
			if err := check(port); err != nil {
				return nil, err
			}
			return client.OpenStream()
		},
	}
}
