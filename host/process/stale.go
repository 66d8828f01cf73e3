package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// CleanDir kills the programs that were started with Environment(dir) and are left over, and removes dir. The caller must know that who
// started them is gone. comms are the programs' names as in /proc/PID/comm, which has up to 15 bytes.
//
// Normally no process is left, since they die with who started them.
func CleanDir(ctx context.Context, dir string, comms ...string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fmt.Errorf("removing what is left of processes: %q is not their directory", dir)
	}
	if err := KillLeft(ctx, func(pid int) bool { return worksIn(pid, dir, comms) }); err != nil {
		return fmt.Errorf("ending what is left over from %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing what is left of processes: %w", err)
	}
	return nil
}

// KillLeft kills all other processes that owned knows, and waits for their ends. A process descriptor is opened before the second look at
// the process, so that the signal cannot hit a later process with the same number.
func KillLeft(ctx context.Context, owned func(pid int) bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("looking for processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !owned(pid) {
			continue
		}
		if err := kill(ctx, pid, owned); err != nil {
			return fmt.Errorf("ending process %d: %w", pid, err)
		}
	}
	return nil
}

// worksIn says whether a process has one of the names and was given dir as its directory.
func worksIn(pid int, dir string, comms []string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	comm, err := os.ReadFile(filepath.Join(proc, "comm"))
	if err != nil || !slices.Contains(comms, string(bytes.TrimRight(comm, "\n"))) {
		return false
	}
	env, err := os.ReadFile(filepath.Join(proc, "environ"))
	if err != nil {
		return false
	}
	return slices.Contains(Environment(dir), string(findTMPDIR(env)))
}

// findTMPDIR returns the TMPDIR entry of a zero-separated environment.
func findTMPDIR(env []byte) []byte {
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.HasPrefix(entry, []byte("TMPDIR=")) {
			return entry
		}
	}
	return nil
}

func kill(ctx context.Context, pid int, owned func(int) bool) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	// Non-blocking, so that the runtime's poller does the waiting: a process descriptor becomes readable when its process ends.
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !owned(pid) {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return sent
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
