package agent

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeOne removes a file, or a directory with everything in it, below root. It enters no mount: what is mounted there is another volume,
// and its files may be the host's or belong to a container that runs. What does not exist is no error.
func removeOne(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		parent, err := root.Open(path.Dir(name))
		if err != nil {
			return err
		}
		err = emptyDir(parent, filepath.Base(name))
		if err := errors.Join(err, parent.Close()); err != nil {
			return err
		}
	}
	return root.Remove(name)
}

// emptyDir removes what is in a directory.
func emptyDir(parent *os.File, name string) error {
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.EXDEV) {
		return invalid("%.120q is a mount, and is not removed", name)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Unlinkat(fd, n, 0)
		if errors.Is(err, unix.EISDIR) {
			if err = emptyDir(d, n); err == nil {
				err = unix.Unlinkat(fd, n, unix.AT_REMOVEDIR)
			}
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove", Path: path.Join(name, n), Err: err}
		}
	}
	return nil
}
