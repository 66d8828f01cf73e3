package bootstrap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultSocketDir is where shims' sockets are. It is short because a socket's path is, with the hash, at most 107 bytes.
	DefaultSocketDir = "/run/containerd/s"
	// socketDirEnv tells the server which directory start used.
	socketDirEnv = "CLOISTER_SHIM_SOCKET_DIR"
	maxSocket    = 107
	probeTime    = time.Second
	lockTime     = 10 * time.Second
)

// SocketAddress is the address of the shim of a sandbox, unix://DIR/HASH: the same for every start with the same containerd, namespace and
// sandbox (section 1 of the shim's specification).
func SocketAddress(dir, containerd, namespace, sandbox string) string {
	if dir == "" {
		dir = DefaultSocketDir
	}
	return fmt.Sprintf("unix://%s/%x", dir, sha256.Sum256([]byte(filepath.Join(containerd, namespace, sandbox))))
}

// socketPath is the file of an address.
func socketPath(address string) (string, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("address %q is not unix:// with an absolute path", clip(address))
	}
	if len(path) > maxSocket {
		return "", fmt.Errorf("socket %s: %d bytes, at most %d\nhint: a shorter socket directory in the configuration of containerd", path, len(path), maxSocket)
	}
	return path, nil
}

// answers says whether somebody listens. Only a refusal or a missing file is a no: a full backlog is somebody.
func answers(ctx context.Context, address string) bool {
	path, err := socketPath(address)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return true
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTSOCK) && !errors.Is(err, unix.ENOTDIR)
}

// errServed says that a shim listens on the address already.
var errServed = errors.New("a shim serves this sandbox already")

// listen makes the socket. One that nobody answers on, left by a shim that was killed, is replaced; another is errServed. A lock on the
// directory keeps two starts from replacing each other's.
func listen(ctx context.Context, address string) (*net.UnixListener, error) {
	path, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the shim's socket: %w", err)
	}
	unlock, err := lockSockets(ctx, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(path); err == nil {
		if answers(ctx, address) {
			return nil, errServed
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the socket of a shim that is gone: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for containerd: %w", err)
	}
	l.SetUnlinkOnClose(false) // start closes its copy, the server goes on
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		os.Remove(path)
		return nil, fmt.Errorf("making the shim's socket private: %w", err)
	}
	return l, nil
}

// removeStale removes the socket if nobody answers on it.
func removeStale(ctx context.Context, address string) error {
	path, err := socketPath(address)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	unlock, err := lockSockets(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	if answers(ctx, address) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the shim's socket: %w", err)
	}
	return nil
}

// lockSockets locks the directory itself, so that no file is left in it.
func lockSockets(ctx context.Context, dir string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("locking the directory of the shim's socket: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-done; f.Close() }() // flock cannot be interrupted: what it gets late is given back
		return nil, fmt.Errorf("waiting for another start in %s: %w", dir, ctx.Err())
	}
}
