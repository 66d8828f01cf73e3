package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long a server may take for its orderly end once delete has been called, and then to die of SIGKILL. containerd gives delete five
// seconds in all.
const (
	stopTime = 2 * time.Second
	killTime = time.Second
)

// stopServer ends the server that shim.pid in the bundle names: containerd runs delete as soon as a connection is gone, while the server may
// be in its last moments, or stuck. It gets SIGTERM, which changes nothing for one that ends already, and then SIGKILL. A number that is
// another process by now is left alone.
func (p *Params) stopServer(ctx context.Context) error {
	b, err := readSmall(filepath.Join(p.Bundle, pidFile))
	if err != nil {
		return nil // no server was started from this bundle
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	if !isServer(pid, p.Namespace, p.ID) { // after pidfd_open: the number cannot change its owner between look and kill
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err == nil && waitProcess(ctx, fd, stopTime) == nil {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing the shim of %s (process %d): %w", p.ID, pid, err)
	}
	if err := waitProcess(ctx, fd, killTime); err != nil {
		return fmt.Errorf("killing the shim of %s (process %d): %w", p.ID, pid, err)
	}
	return nil
}

// isServer says whether the process is the server of this sandbox: it has the flags that start gives.
func isServer(pid int, namespace, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	return bytes.Contains(b, []byte("\x00-namespace\x00"+namespace+"\x00-id\x00"+id+"\x00"))
}

// waitProcess waits for the end of a process.
func waitProcess(ctx context.Context, pidfd int, limit time.Duration) error {
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	end := time.Now().Add(limit)
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for its end: %w", err)
		case n > 0:
			return nil
		case left == 0:
			return fmt.Errorf("waiting for its end: %w", context.DeadlineExceeded)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
