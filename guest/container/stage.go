package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stageBinds pins the source of every bind mount: the source is opened beneath its root without leaving it, whatever
// symlinks the host has put there or puts there later, and bound to a place only the guest can reach. The runtime then
// mounts that place. The returned function undoes it.
func stageBinds(spec *Spec, roots []string, dir string) (undo func() error, err error) {
	var staged []string
	undo = func() error {
		var errs []error
		for _, target := range slices.Backward(staged) {
			errs = append(errs, UnmountAll(target))
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
			undo = nil
		}
	}()
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !m.Bind() {
			continue
		}
		target := filepath.Join(dir, strconv.Itoa(i))
		if err := BindBeneath(m.Source, roots, target); err != nil {
			return undo, fmt.Errorf("mount source of %s: %w", m.Destination, err)
		}
		staged = append(staged, target)
		m.Source = target
	}
	return undo, nil
}

// maxStacked bounds how many mounts may lie on one another.
const maxStacked = 16

// UnmountAll takes away every mount at target: also those that the kernel has put on top of ours. A target that is not mounted, or not
// there, is not an error.
func UnmountAll(target string) error {
	for range maxStacked {
		switch err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmounting %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmounting %s: more than %d mounts lie on one another", target, maxStacked)
}

// BindBeneath binds source, which must resolve beneath one of roots, to target, which it creates.
func BindBeneath(source string, roots []string, target string) error {
	fd, err := OpenBeneath(source, roots)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("examining %s: %w", source, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.MkdirAll(target, 0o700)
	case unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
		if err = os.MkdirAll(filepath.Dir(target), 0o700); err == nil {
			err = os.WriteFile(target, nil, 0o600)
		}
	default:
		return refuse("%s is neither a directory nor a file", source)
	}
	if err != nil {
		return fmt.Errorf("making a mount point for %s: %w", source, err)
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s: %w", source, err)
	}
	return nil
}

// OpenBeneath opens p without ever leaving the root of roots that contains it. Symlinks that stay inside are followed.
func OpenBeneath(p string, roots []string) (int, error) { return openBeneath(p, roots, 0) }

// OpenPlain is OpenBeneath for what is given to the host: it follows no symlinks, which could lead to files of others.
func OpenPlain(p string, roots []string) (int, error) {
	return openBeneath(p, roots, unix.RESOLVE_NO_SYMLINKS)
}

func openBeneath(p string, roots []string, resolve uint64) (int, error) {
	for _, root := range roots {
		if !below(p, root) {
			continue
		}
		dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("opening %s: %w", root, err)
		}
		defer unix.Close(dir)
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | resolve}
		// As a directory first: only so does the kernel go into what is mounted at the last name when that mount is made on first
		// use, as those within a shared directory are. Otherwise the directory below it would be bound, and the mount come later.
		asDir := how
		asDir.Flags |= unix.O_DIRECTORY
		fd, err := unix.Openat2(dir, strings.TrimPrefix(p, root+"/"), &asDir)
		if errors.Is(err, unix.ENOTDIR) {
			fd, err = unix.Openat2(dir, strings.TrimPrefix(p, root+"/"), &how)
		}
		if errors.Is(err, unix.EXDEV) {
			return -1, refuse("%q leads out of %s", clip(p), root)
		}
		if err != nil {
			return -1, fmt.Errorf("opening %s: %w", p, err)
		}
		return fd, nil
	}
	return -1, refuse("%q is not in a directory of the pod", clip(p))
}

// RemoveTree removes a directory of the guest's own with everything in it, but never what is mounted below it: those files are a
// volume's, and may be the host's.
func RemoveTree(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("looking for mounts: %w", err)
	}
	for line := range strings.Lines(string(table)) {
		// Names that the kernel would escape do not occur below directories of ours.
		if fields := strings.Fields(line); len(fields) > 4 && below(fields[4], dir) {
			return fmt.Errorf("%s is still mounted", fields[4])
		}
	}
	return os.RemoveAll(dir)
}
