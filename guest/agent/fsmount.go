package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountArgs are what a mount takes.
type mountArgs struct {
	attrs int // MOUNT_ATTR_*
	// flags and values are the file system's own.
	flags  []string
	values [][2]string
}

func (m mountArgs) readOnly() bool { return m.attrs&unix.MOUNT_ATTR_RDONLY != 0 }

// parseMount reads mount options. Devices on a mounted file system never have an effect. Options in known are handed to
// the file system.
func parseMount(options, known []string) (mountArgs, error) {
	m := mountArgs{attrs: unix.MOUNT_ATTR_NODEV}
	for _, o := range options {
		switch o {
		case "", "defaults", "rw", "nodev", "relatime", "exec", "suid":
		case "ro":
			m.attrs |= unix.MOUNT_ATTR_RDONLY
			m.flags = append(m.flags, "ro")
		case "nosuid":
			m.attrs |= unix.MOUNT_ATTR_NOSUID
		case "noexec":
			m.attrs |= unix.MOUNT_ATTR_NOEXEC
		case "noatime":
			m.attrs |= unix.MOUNT_ATTR_NOATIME
		case "sync":
			m.flags = append(m.flags, "sync")
		default:
			switch {
			case slices.Contains(known, o):
				if key, value, ok := strings.Cut(o, "="); ok {
					m.values = append(m.values, [2]string{key, value})
				} else {
					m.flags = append(m.flags, o)
				}
			case strings.HasPrefix(o, "X-kata."), strings.HasPrefix(o, "io.katacontainers."), strings.HasPrefix(o, "fsgid="):
			default:
				return m, invalid("mount option %.60q", o)
			}
		}
	}
	return m, nil
}

// openFS makes a mount that is not attached anywhere yet and opens its root.
func openFS(fstype, source string, m mountArgs) (*os.File, error) {
	fail := func(err error) error { return fmt.Errorf("file system %s of %s: %w", fstype, source, err) }
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fail(err)
	}
	defer unix.Close(fs)
	for _, v := range append([][2]string{{"source", source}}, m.values...) {
		if err := unix.FsconfigSetString(fs, v[0], v[1]); err != nil {
			return nil, fail(fmt.Errorf("%s=%s: %w", v[0], v[1], err))
		}
	}
	for _, flag := range m.flags {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return nil, fail(fmt.Errorf("%s: %w", flag, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fail(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, m.attrs)
	if err != nil {
		return nil, fail(err)
	}
	return os.NewFile(uintptr(fd), source), nil
}

// attach shows a mount at a directory that is open: no path is walked that somebody else could change.
func attach(mount, at *os.File) error {
	err := unix.MoveMount(int(mount.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attaching %s: %w", mount.Name(), err)
	}
	return nil
}

// detach undoes attach and closes the mount.
func detach(mount *os.File) error {
	err := unix.Unmount(fdPath(mount), unix.MNT_DETACH)
	if err != nil {
		err = fmt.Errorf("unmounting %s: %w", mount.Name(), err)
	}
	return errors.Join(err, mount.Close())
}

// openRoot opens the root of a mount for reading.
func openRoot(mount *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", mount.Name(), err)
	}
	return os.NewFile(uintptr(fd), mount.Name()), nil
}
