package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CleanStale removes what a killed supervisor left of the VM that had this directory. The caller must know that the supervisor is gone.
//
// Normally no process is left, since they die with the supervisor. Those that are still dying, or were started by a program that
// clears the parent-death signal, are found by their command line, which names the directory; a process descriptor is opened
// before the second look at the command line, so that the signal cannot hit a later process with the same number.
func CleanStale(ctx context.Context, dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fmt.Errorf("removing the remains of a virtual machine: %q is not the directory of one", dir)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("looking for processes of %s: %w", dir, err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !ownedBy("/proc", pid, dir) {
			continue
		}
		if err := killVerified(ctx, pid, dir); err != nil {
			return fmt.Errorf("ending process %d, left over from %s: %w", pid, dir, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the remains of a virtual machine: %w", err)
	}
	return nil
}

// ownedBy says whether a process is one of ours and works in dir.
func ownedBy(proc string, pid int, dir string) bool {
	b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	return commandUses(b, dir)
}

// commandUses looks at a zero-separated command line.
func commandUses(cmdline []byte, dir string) bool {
	argv := bytes.Split(cmdline, []byte{0})
	program := filepath.Base(string(argv[0]))
	if !strings.HasPrefix(program, "qemu-system-") && !strings.HasPrefix(program, "swtpm") {
		return false
	}
	needle := []byte(filepath.Clean(dir) + "/")
	for _, a := range argv[1:] {
		if bytes.Contains(a, needle) {
			return true
		}
	}
	return false
}

func killVerified(ctx context.Context, pid int, dir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	// Non-blocking, so that the runtime's poller does the waiting: a process descriptor becomes readable when its process ends.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !ownedBy("/proc", pid, dir) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return waitReadable(ctx, f)
}

// waitReadable waits until the descriptor reports its event.
func waitReadable(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
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
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}
