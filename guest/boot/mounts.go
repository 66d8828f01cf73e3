package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountPoint is one kernel file system of the running guest.
type mountPoint struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	// optional mounts may be missing from the kernel.
	optional bool
}

const (
	confined = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	noDevs   = unix.MS_NOSUID | unix.MS_NODEV
)

// earlyMounts need no modules.
func earlyMounts() []mountPoint {
	return []mountPoint{
		{"proc", "/proc", "proc", confined, "", false},
		{"sysfs", "/sys", "sysfs", confined, "", false},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", false},
		{"shm", "/dev/shm", "tmpfs", confined, "mode=1777,size=64m", false},
		// Images are unpacked below /run, so it may be most of the memory and may hold programs.
		{"run", "/run", "tmpfs", noDevs, "mode=0755,size=80%", false},
		{"tmp", "/tmp", "tmpfs", confined, "mode=1777,size=16m", false},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", confined, "nsdelegate,memory_recursiveprot", false},
	}
}

// lateMounts depend on modules.
func lateMounts() []mountPoint {
	return []mountPoint{
		{"securityfs", "/sys/kernel/security", "securityfs", confined, "", true},
		{"configfs", "/sys/kernel/config", "configfs", confined, "", true},
	}
}

func mountAll(points []mountPoint) error {
	for _, m := range points {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !m.optional {
			return fmt.Errorf("making mount point %s: %w", m.target, err)
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		missing := errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
		if err == nil || errors.Is(err, unix.EBUSY) || m.optional && missing {
			continue
		}
		return fmt.Errorf("mounting %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

// deviceLinks are what programs expect below /dev and devtmpfs does not make.
func deviceLinks() error {
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx",
	} {
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replacing %s: %w", link, err)
		}
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("linking %s: %w", link, err)
		}
	}
	return nil
}

// reroot gives the initial RAM file system a parent mount: pivot_root, which the container runtime uses, refuses to
// work on the kernel's very first mount. The files stay the same, no memory is copied.
func reroot() error {
	const stage = "/newroot"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", stage, err)
	}
	if err := unix.Mount("/", stage, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding the root: %w", err)
	}
	if err := os.Chdir(stage); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	return nil
}
