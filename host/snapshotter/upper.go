package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// upperFile is a file in the directory that a container writes into. The container may put another one into its place at any time:
// what is asked of an upperFile is asked of the file that was found, and no symbolic link is followed to it.
type upperFile struct {
	fd   int // of O_PATH: nothing is opened by it, neither a pipe, which would wait, nor a device
	Stat unix.Stat_t
}

// openUpper finds a file by its name in a directory. The name is one that the directory has listed, not a path.
func openUpper(dir int, name string) (*upperFile, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "looking at", Path: name, Err: err}
	}
	f := &upperFile{fd: fd}
	if err := unix.Fstat(fd, &f.Stat); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "looking at", Path: name, Err: err}
	}
	return f, nil
}

func (f *upperFile) Close() { _ = unix.Close(f.fd) }

// Type is one of the kernel's S_IF constants.
func (f *upperFile) Type() uint32 { return f.Stat.Mode & unix.S_IFMT }

// path leads to this very file for as long as it is open, whatever it is called by now. The kernel follows it no further, also when the
// file is a symbolic link.
func (f *upperFile) path() string { return "/proc/self/fd/" + strconv.Itoa(f.fd) }

// Open opens a regular file or a directory for reading, and nothing else.
func (f *upperFile) Open() (*os.File, error) {
	if t := f.Type(); t != unix.S_IFREG && t != unix.S_IFDIR {
		return nil, fmt.Errorf("it is neither a file nor a directory: %w", fs.ErrInvalid)
	}
	// The container may hold a lease, for which the kernel would wait.
	return os.OpenFile(f.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// Target is that of a symbolic link.
func (f *upperFile) Target() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(f.fd, "", buf)
	if err != nil {
		return "", fmt.Errorf("reading the symbolic link: %w", err)
	}
	return string(buf[:n]), nil
}

// names are those in a directory, sorted.
func (f *upperFile) names() ([]string, error) {
	dir, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// walkUpper visits everything in the directory that a container writes into, the directory itself first, as ".", and each directory
// before what is in it. Files that are gone before they are looked at are passed over when gone says so.
func walkUpper(ctx context.Context, dir string, gone bool, visit func(name string, f *upperFile) error) error {
	root, err := openUpper(unix.AT_FDCWD, dir)
	if gone && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	w := upperWalk{gone: gone, visit: visit}
	return w.walk(ctx, ".", root)
}

type upperWalk struct {
	gone  bool
	visit func(name string, f *upperFile) error
}

func (w *upperWalk) walk(ctx context.Context, name string, f *upperFile) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(name) >= unix.PathMax { // it bounds the descriptors as well: each directory on the way has one
		return fmt.Errorf("%s…: a path of more than %d bytes: %w", name[:100], unix.PathMax, unix.ENAMETOOLONG)
	}
	if err := w.visit(name, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if f.Type() != unix.S_IFDIR {
		return nil
	}
	names, err := f.names()
	if err != nil && !(w.gone && errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, child := range names {
		if err := w.child(ctx, name, f, child); err != nil {
			return err
		}
	}
	return nil
}

func (w *upperWalk) child(ctx context.Context, parent string, dir *upperFile, name string) error {
	f, err := openUpper(dir.fd, name)
	if w.gone && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", parent, err)
	}
	defer f.Close()
	return w.walk(ctx, filepath.Join(parent, name), f)
}
