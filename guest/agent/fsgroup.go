package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxGroupFiles bounds what is given to a group one by one.
const maxGroupFiles = 1 << 20

// applyAll gives a directory with everything in it to the group: files become readable and writable for it, directories
// hand the group on. Symlinks are left alone and never followed. With the policy OnRootMismatch nothing is done when the
// directory itself is as it should be.
func (g volumeGroup) applyAll(dir *os.File) error {
	if !g.set {
		return nil
	}
	info, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("examining the volume: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && g.onMismatch && int(st.Gid) == g.gid && st.Mode&groupDir == groupDir {
		return nil
	}
	root, err := os.OpenRoot(fdPath(dir))
	if err != nil {
		return fmt.Errorf("opening the volume: %w", err)
	}
	defer root.Close()
	count := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if count++; count > maxGroupFiles {
			return errors.New("there are too many files")
		}
		want := uint32(0)
		switch d.Type() {
		case fs.ModeDir:
			want = groupDir
		case 0:
			want = groupFile
		default:
			return nil
		}
		return g.give(root, name, want)
	})
	if err != nil {
		return fmt.Errorf("giving the volume to group %d: %w", g.gid, err)
	}
	return nil
}

// Mode bits that a group gets.
const (
	groupFile = 0o660
	groupDir  = unix.S_ISGID | 0o770
)

func (g volumeGroup) give(root *os.Root, name string, want uint32) error {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := f.Chown(-1, g.gid); err != nil {
		return err
	}
	return unix.Fchmod(int(f.Fd()), st.Mode&0o7777|want)
}
