package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const maxXattrBytes = 64 << 10

// resolveBelow opens name below the layer's root. Leaving the root, by ".." or a symbolic link, is EXDEV.
func (u *unpacker) resolveBelow(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(u.root, name, how)
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && tries < 100 {
			continue // a rename elsewhere raced with the resolution
		}
		if errors.Is(err, unix.EXDEV) {
			return -1, fmt.Errorf("path traversal: %q leads out of the layer through a symbolic link", truncate(name, 200))
		}
		return fd, err
	}
}

func (u *unpacker) openDir(name string) (int, error) {
	if name == "." {
		name = ""
	}
	fd, err := u.resolveBelow(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, wrap("opening directory", err)
	}
	return fd, nil
}

// place returns the directory that holds name, made if missing, and name's last component. The descriptor belongs
// to the unpacker and is good until the next call.
func (u *unpacker) place(name string) (dir int, base string, err error) {
	parent := path.Dir(name)
	if parent == "." {
		u.forgetParent() // what is about to change may be a symbolic link that led there
		return u.root, path.Base(name), nil
	}
	if u.parent >= 0 && u.parentName == parent {
		return u.parent, path.Base(name), nil
	}
	fd, err := u.resolveBelow(parent, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = u.makeParents(parent)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return -1, "", errors.New("a parent of the path is not a directory")
	}
	if err != nil {
		return -1, "", wrap("opening parent directory", err)
	}
	u.forgetParent()
	u.parent, u.parentName = fd, parent
	return fd, path.Base(name), nil
}

// makeParents makes the directories that a layer uses without having entries for them.
func (u *unpacker) makeParents(name string) (int, error) {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		prefix := name[:i]
		fd, err := u.resolveBelow(prefix, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
		if err := u.use.addEntry(); err != nil {
			return -1, err
		}
		up, err := u.resolveBelow(path.Dir(prefix), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(up, path.Base(prefix), 0o755)
		unix.Close(up)
		if err != nil {
			return -1, err
		}
	}
	return u.resolveBelow(name, unix.O_RDONLY|unix.O_DIRECTORY)
}

func (u *unpacker) forgetParent() {
	if u.parent >= 0 {
		unix.Close(u.parent)
	}
	u.parent, u.parentName = -1, ""
}

// vacate is place, after removing whatever has the name.
func (u *unpacker) vacate(name string) (dir int, base string, err error) {
	dir, base, err = u.place(name)
	if err != nil {
		return -1, "", err
	}
	err = unix.Unlinkat(dir, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTEMPTY) {
		if err := u.removeTree(name); err != nil {
			return -1, "", err
		}
		return u.place(name)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, "", wrap("removing what had the name", err)
	}
	return dir, base, nil
}

// removeTree removes a directory of the layer that a later entry of the same layer replaces.
func (u *unpacker) removeTree(name string) error {
	u.forgetParent()
	u.dirs = slices.DeleteFunc(u.dirs, func(d dirTimes) bool {
		return d.name == name || strings.HasPrefix(d.name, name+"/")
	})
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", u.root))
	if err != nil {
		return wrap("opening the layer", err)
	}
	defer root.Close()
	return wrap("removing what had the name", root.RemoveAll(name))
}

// metadata sets owner, mode and extended attributes of an open file or directory. The owner comes first: changing
// it clears set-user-id bits and file capabilities.
func (u *unpacker) metadata(fd int, hdr *tar.Header) error {
	if u.asRoot {
		if err := checkOwner(hdr); err != nil {
			return err
		}
		if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return wrap("setting owner", err)
		}
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&0o7777); err != nil {
		return wrap("setting mode", err)
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if err := u.xattr(fd, name, value); err != nil {
			return err
		}
	}
	return nil
}

// xattr restores one extended attribute. The trusted namespace is the overlay file system's own: a layer that could
// set it could redirect look-ups between layers.
func (u *unpacker) xattr(fd int, name, value string) error {
	if len(name) > 255 || len(value) > maxXattrBytes {
		return &LimitError{What: "size of an extended attribute", Limit: maxXattrBytes}
	}
	switch {
	case strings.HasPrefix(name, "trusted."):
		return fmt.Errorf("extended attribute %q is not allowed in a layer", truncate(name, 100))
	case !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "system.posix_acl_"):
		return nil
	case !u.asRoot && !strings.HasPrefix(name, "user."):
		return nil
	case u.noXattr && strings.HasPrefix(name, "user."):
		return nil
	}
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	if errors.Is(err, unix.ENOTSUP) {
		u.noXattr = u.noXattr || strings.HasPrefix(name, "user.")
		return nil
	}
	return wrap(fmt.Sprintf("setting extended attribute %q", truncate(name, 100)), err)
}

func checkOwner(hdr *tar.Header) error {
	const limit = 1<<32 - 1 // -1 means "leave as is"
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) >= limit || int64(hdr.Gid) >= limit {
		return fmt.Errorf("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	return nil
}

func (u *unpacker) chown(dir int, base string, hdr *tar.Header) error {
	if !u.asRoot {
		return nil
	}
	if err := checkOwner(hdr); err != nil {
		return err
	}
	return wrap("setting owner", unix.Fchownat(dir, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW))
}

func (u *unpacker) times(dir int, base string, hdr *tar.Header) error {
	return wrap("setting times", unix.UtimesNanoAt(dir, base, timespecs(hdr), unix.AT_SYMLINK_NOFOLLOW))
}

// setDirTimes comes last: making files in a directory changes its time.
func (u *unpacker) setDirTimes() error {
	u.forgetParent()
	for _, d := range slices.Backward(u.dirs) {
		name := d.name
		if name == "" {
			name = "."
		}
		fd, err := u.openDir(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // replaced by a later entry
		}
		if err != nil {
			return err
		}
		err = unix.UtimesNanoAt(fd, ".", timespecs(&d.hdr), unix.AT_SYMLINK_NOFOLLOW)
		unix.Close(fd)
		if err != nil {
			return wrap(fmt.Sprintf("setting times of %q", truncate(d.name, 200)), err)
		}
	}
	return nil
}

func timespecs(hdr *tar.Header) []unix.Timespec {
	mtime := hdr.ModTime
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	atime := hdr.AccessTime
	if atime.IsZero() {
		atime = mtime
	}
	return []unix.Timespec{{Sec: atime.Unix(), Nsec: int64(atime.Nanosecond())}, {Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}}
}
