// Package share is the directory that a sandboxed guest sees through virtio-fs, and the virtiofsd that serves it.
//
// The layout below Config.Dir, and why it looks so:
//
//	DIR          bound on itself, private: nothing that is mounted below it shows up in other mount namespaces of the host; unbindable: nor
//	             in what is shared of the directories above it
//	DIR/names    empty directories and files, one for each thing that is shared; only we write here
//	DIR/shared   names again, bound read-only and with propagation; the things are mounted here, virtiofsd serves this
//	DIR/s        the socket of virtiofsd
//
// virtiofsd serves from a mount namespace of its own, which is a slave of ours: what is mounted below shared later arrives there.
// The guest can change what is in the things that are shared writably, and nothing else.
//
// Three rules keep the host's files safe. Sources are mounted from an open file, never by a name that somebody could exchange
// meanwhile. A source's mounts are taken as private or slave copies before they are attached, so that unmounting a copy never unmounts
// the original. And nothing is deleted through shared: names has no mounts below it, and only empty files are deleted there.
//
// Mounts need Linux 5.12 (mount_setattr).
package share

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/wire/agent"
)

const (
	// Tag is the name under which the guest mounts the directory.
	Tag = "kataShared"
	// GuestDir is where the guest mounts it.
	GuestDir = "/run/kata-containers/shared/containers"

	namesDir   = "names"
	sharedDir  = "shared"
	socketName = "s"
	rootfsName = "rootfs"
)

// maxSocketPath is what a unix socket's address holds, without the zero byte at its end.
const maxSocketPath = 107

// Config describes a shared directory.
type Config struct {
	// Dir is made by Start and removed by Close. It must be an absolute path on a file system of the host, for root only.
	Dir string
	// Program is the virtiofsd; empty, or the configuration's default when that is missing, finds one (see Find).
	Program string
	// Args are added to its arguments, in the style of either virtiofsd.
	Args []string
	// Cache is auto, always, metadata or never; empty is auto.
	Cache string
	// Started, when not nil, is called with the process number, for example to move it into a control group, and with those of the
	// processes that it has started by then. An error ends the start.
	Started func(pid int) error
}

// Share is a shared directory that is served.
type Share struct {
	dir    string
	top    *os.File // DIR
	names  *os.File // DIR/names
	shared *os.File // DIR/shared
	child  *process.Child
	done   chan struct{}

	// ops is held for reading while the files above are used, for writing when they are closed.
	ops sync.RWMutex

	mu     sync.Mutex
	closed bool
	used   map[string]bool
	err    error
}

// Start makes the directory and starts virtiofsd, which serves the first monitor that connects to Socket. The socket listens when Start
// returns. What an earlier Share left in Dir is removed first.
func Start(ctx context.Context, c Config) (_ *Share, err error) {
	if !filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) != c.Dir || strings.ContainsAny(c.Dir, "\x00\n,") {
		return nil, fmt.Errorf("shared directory %q: expected a clean absolute path without commas", c.Dir)
	}
	program, err := Find(c.Program)
	if err != nil {
		return nil, err
	}
	// Asking the program takes as long as making the directory; both are on the way to the pod's start.
	type answer struct {
		args []string
		err  error
	}
	asked := make(chan answer, 1)
	go func() {
		kind, err := examine(ctx, program)
		if err != nil {
			asked <- answer{err: err}
			return
		}
		args, err := arguments(kind, filepath.Join(c.Dir, sharedDir), c.Cache, c.Args)
		asked <- answer{args, err}
	}()
	if err := Cleanup(ctx, c.Dir); err != nil {
		return nil, fmt.Errorf("removing an earlier shared directory: %w", err)
	}
	s := &Share{dir: c.Dir, done: make(chan struct{}), used: map[string]bool{}}
	defer func() {
		if err != nil {
			s.closeFiles()
			err = errors.Join(err, Cleanup(context.WithoutCancel(ctx), c.Dir))
		}
	}()
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("making the shared directory %s: %w", c.Dir, err)
	}
	said := <-asked
	if said.err != nil {
		return nil, said.err
	}
	socket, err := s.listen()
	if err != nil {
		return nil, fmt.Errorf("making the socket of virtiofsd: %w", err)
	}
	defer socket.Close()
	s.child, err = process.Start(program, said.args, process.Environment("/"), socket)
	if err != nil {
		return nil, err
	}
	if c.Started != nil {
		if err := tell(c.Started, s.child.PID(), 0); err != nil {
			s.child.Kill()
			return nil, fmt.Errorf("virtiofsd: %w", err)
		}
	}
	go s.follow(program)
	return s, nil
}

// maxDepth bounds how deep processes of virtiofsd are looked for.
const maxDepth = 4

// tell calls started for a process, then for its children: virtiofsd has the one that serves the guest soon, and it stays where it was when its
// parent is moved. Those that come later are where the parent is.
func tell(started func(pid int) error, pid, depth int) error {
	err := started(pid)
	if depth > 0 && errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	}
	if err != nil || depth == maxDepth {
		return err
	}
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended, which is seen elsewhere
	}
	for _, text := range strings.Fields(string(list)) {
		child, err := strconv.Atoi(text)
		if err == nil {
			err = tell(started, child, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare makes the directories and their mounts.
func (s *Share) prepare() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	top, err := openDir(unix.AT_FDCWD, s.dir)
	if err != nil {
		return err
	}
	err = bindTo(top, top, unix.MountAttr{Propagation: unix.MS_PRIVATE}, 0)
	top.Close()
	if err != nil {
		return fmt.Errorf("binding it on itself: %w", err)
	}
	if s.top, err = openDir(unix.AT_FDCWD, s.dir); err != nil { // now inside of the new mount
		return err
	}
	for _, name := range []string{namesDir, sharedDir} {
		// The guest sees the mode of names.
		if err := unix.Mkdirat(int(s.top.Fd()), name, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
	}
	if s.names, err = openDir(int(s.top.Fd()), namesDir); err != nil {
		return err
	}
	point, err := openDir(int(s.top.Fd()), sharedDir)
	if err != nil {
		return err
	}
	defer point.Close()
	locked := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if err := bindTo(s.names, point, locked, 0); err != nil {
		return fmt.Errorf("binding %s: %w", sharedDir, err)
	}
	if s.shared, err = openDir(int(s.top.Fd()), sharedDir); err != nil {
		return err
	}
	propagate := unix.MountAttr{Propagation: unix.MS_SHARED}
	if err := unix.MountSetattr(int(s.shared.Fd()), "", unix.AT_EMPTY_PATH, &propagate); err != nil {
		return fmt.Errorf("letting mounts propagate: %w", err)
	}
	// From here on copies of the mounts above leave this one out. Without it, each container with the host's root directory would get a copy of
	// all mounts of all pods, which the next one copies again: their number would double each time.
	alone := unix.MountAttr{Propagation: unix.MS_UNBINDABLE}
	if err := unix.MountSetattr(int(s.top.Fd()), "", unix.AT_EMPTY_PATH, &alone); err != nil {
		return fmt.Errorf("keeping its mounts out of others: %w", err)
	}
	return nil
}

// listen makes the socket that virtiofsd inherits.
func (s *Share) listen() (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fdPath(s.top) + "/" + socketName, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}

// follow waits for the end of virtiofsd.
func (s *Share) follow(program string) {
	<-s.child.Done()
	s.mu.Lock()
	if err := s.child.Err(); err != nil && !s.closed {
		s.err = fmt.Errorf("%s ended: %w", program, err)
		if lines := s.child.Output.Lines(5); len(lines) > 0 {
			s.err = fmt.Errorf("%w; it said: %s", s.err, strings.Join(lines, "; "))
		}
	}
	s.mu.Unlock()
	close(s.done)
}

// Socket is the address of virtiofsd's socket for the virtual machine monitor. It can be a path through /proc of this process, when the
// directory's own path is longer than such an address may be.
func (s *Share) Socket() string {
	if p := filepath.Join(s.dir, socketName); len(p) <= maxSocketPath {
		return p
	}
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), s.top.Fd(), socketName)
}

// PID is the process number of virtiofsd.
func (s *Share) PID() int { return s.child.PID() }

// Storage is the entry of CreateSandbox that lets the guest mount the directory.
func Storage() *agent.Storage {
	return &agent.Storage{Driver: "virtio-fs", Source: Tag, Fstype: "virtiofs", Options: []string{"nodev"}, MountPoint: GuestDir + "/"}
}

// Done is closed when virtiofsd has ended. It ends by itself when the monitor disconnects.
func (s *Share) Done() <-chan struct{} { return s.done }

// Err says why virtiofsd ended, once Done is closed; nil when Close ended it or it ended as it should.
func (s *Share) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends virtiofsd, unmounts everything and removes the directory. Files of the host that were shared are not touched.
func (s *Share) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.child.Kill()
	<-s.done
	if first {
		s.ops.Lock()
		s.closeFiles()
		s.ops.Unlock()
	}
	return Cleanup(ctx, s.dir)
}

func (s *Share) closeFiles() {
	for _, f := range []*os.File{s.shared, s.names, s.top} {
		if f != nil {
			f.Close()
		}
	}
}

func openDir(at int, name string) (*os.File, error) {
	return openAt(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

func openAt(at int, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
