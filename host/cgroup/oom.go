package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OOMError says that the host's kernel has killed processes of a sandbox for want of memory. It is the reason of a VMM's end that
// otherwise only shows as SIGKILL.
type OOMError struct {
	// Kills is how many processes of the sandbox were killed.
	Kills uint64
	// Limit is the smallest limit of memory, in bytes, of the group and those above it, 0 when there is none; Group is whose it is.
	Limit uint64
	Group string
}

func (e *OOMError) Error() string {
	if e.Limit == 0 {
		return fmt.Sprintf("the host ran out of memory, and its kernel killed %d of the sandbox's processes (hint: give the pod a memory"+
			" limit, so that the scheduler knows what it takes, and see the node's kernel log)", e.Kills)
	}
	return fmt.Sprintf("the host's kernel killed %d of the sandbox's processes for want of memory: the limit of cgroup %s is %d MiB"+
		" (hint: raise the pod's memory limit, or the overhead of its RuntimeClass)", e.Kills, e.Group, e.Limit>>20)
}

// oomPause is how often the number is looked at when no event comes: version 1 has none for a host that is out of memory as a whole.
const oomPause = 10 * time.Second

// The event of version 1 comes before the kill: the number is looked at until it has changed, for at most this long.
const (
	oomSettle = 2 * time.Second
	oomLook   = 20 * time.Millisecond
)

// memoryDir is the directory of the memory controller, and which version it has.
func (g *Group) memoryDir() (dir string, v2 bool, err error) {
	if dir = g.state.Paths["memory"]; dir != "" {
		return dir, false, nil
	}
	if dir = g.state.Paths[""]; dir != "" {
		return dir, true, nil
	}
	return "", false, fmt.Errorf("cgroup %s has no memory controller: %w", g.state.Location, errors.ErrUnsupported)
}

// OOMKills is how many processes of the group, and of groups below it, the kernel has killed for want of memory since the group was made.
func (g *Group) OOMKills() (uint64, error) {
	dir, v2, err := g.memoryDir()
	if err != nil {
		return 0, err
	}
	var n uint64
	if v2 {
		n, err = counter(filepath.Join(dir, "memory.events"), "oom_kill") // with the groups below
	} else {
		n, err = killsBelow(dir, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("counting the processes of cgroup %s killed for want of memory: %w", g.state.Location, err)
	}
	return n, nil
}

// killsBelow adds up a tree of version 1, in which each group counts its own.
func killsBelow(dir string, depth int) (uint64, error) {
	n, err := counter(filepath.Join(dir, "memory.oom_control"), "oom_kill")
	if err != nil || depth == maxDepth {
		return n, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return n, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := killsBelow(filepath.Join(dir, e.Name()), depth+1)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may go at any time
			return n, err
		}
		n = plus(n, below)
	}
	return n, nil
}

// counter reads the number of a line "key number".
func counter(file, key string) (uint64, error) {
	text, err := readSmall(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s: %w (hint: the kernel counts it since 4.13)", file, key, errors.ErrUnsupported)
}

func readSmall(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return string(b), err
}

// OOMReason is an *OOMError when the kernel has killed a process of the group for want of memory, and nil when it has not. It is asked when
// a process of the group has ended by SIGKILL, before the group is removed.
func (g *Group) OOMReason() error {
	kills, err := g.OOMKills()
	if err != nil || kills == 0 {
		return err
	}
	e := &OOMError{Kills: kills}
	e.Limit, e.Group = g.smallestLimit()
	return e
}

// smallestLimit looks at the group and at those above it: the pod's own group has one as well.
func (g *Group) smallestLimit() (limit uint64, group string) {
	dir, v2, err := g.memoryDir()
	if err != nil {
		return 0, ""
	}
	name := "memory.limit_in_bytes"
	if v2 {
		name = "memory.max"
	}
	own, err := g.state.Location.Dir()
	if err != nil {
		return 0, ""
	}
	limit = math.MaxUint64
	for ; own != "/" && own != "."; own, dir = filepath.Dir(own), filepath.Dir(dir) {
		text, err := readSmall(filepath.Join(dir, name))
		if err != nil {
			break
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64); err == nil && n < limit { // "max" is no number
			limit, group = n, own
		}
	}
	if limit > math.MaxInt64/2 { // what version 1 has for none
		return 0, ""
	}
	return limit, group
}

// OOMKilled waits until the kernel has killed more than known of the group's processes for want of memory, and returns how many. It is
// called again with that number. It ends with the error of ctx, or with one that is fs.ErrNotExist when the group has gone.
func (g *Group) OOMKilled(ctx context.Context, known uint64) (uint64, error) {
	dir, v2, err := g.memoryDir()
	if err != nil {
		return 0, err
	}
	events, err := oomEvents(dir, v2)
	if err != nil {
		return 0, fmt.Errorf("watching cgroup %s for a want of memory: %w", g.state.Location, err)
	}
	defer events.Close()
	defer context.AfterFunc(ctx, func() { events.Close() })()
	var settle time.Time
	for {
		n, err := g.OOMKills()
		if err != nil {
			return 0, err
		}
		if n > known {
			return n, nil
		}
		now := time.Now()
		wait := oomPause
		if now.Before(settle) {
			wait = oomLook
		}
		if err := events.SetReadDeadline(now.Add(wait)); err != nil && ctx.Err() == nil {
			return 0, fmt.Errorf("watching cgroup %s for a want of memory: %w", g.state.Location, err)
		}
		var buf [4096]byte
		_, err = events.Read(buf[:])
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err == nil:
			settle = time.Now().Add(oomSettle)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("watching cgroup %s for a want of memory: %w", g.state.Location, err)
		}
	}
}

// oomEvents is a file that can be read when something may have changed.
func oomEvents(dir string, v2 bool) (_ *os.File, err error) {
	if v2 {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, os.NewSyscallError("inotify_init1", err)
		}
		f := os.NewFile(uintptr(fd), "inotify")
		if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "memory.events"), unix.IN_MODIFY); err != nil {
			f.Close()
			return nil, os.NewSyscallError("inotify_add_watch", err)
		}
		return f, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err == nil {
		err = writeExisting(filepath.Join(dir, "cgroup.event_control"), fmt.Sprintf("%d %d", fd, control.Fd()))
		control.Close()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
