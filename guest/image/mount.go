package image

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounter makes root file systems. The guest uses Overlay; tests without privileges bring their own.
type Mounter interface {
	// Mount shows lower (top layer first) under a writable upper at target; work is overlayfs's scratch directory.
	Mount(lower []string, upper, work, target string) error
	// Unmount undoes Mount. A target that is not mounted is not an error.
	Unmount(target string) error
}

// Overlay mounts with the kernel's overlayfs.
type Overlay struct{}

// Mount implements Mounter. It hands the layers to the kernel one by one, because all of them together can be longer
// than the one page that mount(2) takes.
func (Overlay) Mount(lower []string, upper, work, target string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("overlayfs: %w", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("overlayfs: setting %s=%s: %w%s", key, value, err, contextLog(fs))
		}
		return nil
	}
	for _, dir := range lower {
		if err := set("lowerdir+", dir); err != nil {
			return err
		}
	}
	options := [][2]string{{"upperdir", upper}, {"workdir", work}, {"source", "cloister"}}
	for _, o := range options {
		if err := set(o[0], o[1]); err != nil {
			return err
		}
	}
	// The layers never come with redirects or metadata-only copies; if they seem to, the kernel must not follow.
	for _, o := range [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}} {
		if err := set(o[0], o[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("overlayfs: creating with %d layers: %w%s", len(lower), err, contextLog(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("overlayfs: mounting: %w%s", err, contextLog(fs))
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("overlayfs: mounting at %s: %w", target, err)
	}
	return nil
}

// Unmount implements Mounter. Processes may still be ending: the mount leaves the tree at once and goes when they do.
func (Overlay) Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return wrap("unmounting "+target, err)
}

// contextLog reads what the kernel says about a failed mount.
func contextLog(fs int) string {
	var out strings.Builder
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		out.WriteString("; ")
		out.WriteString(strings.TrimSpace(string(buf[:n])))
	}
	return out.String()
}
