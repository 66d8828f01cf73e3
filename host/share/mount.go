package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMounts bounds the mounts of one root file system.
const maxMounts = 256

// BindOptions say how a file or directory is shared.
type BindOptions struct {
	// ReadOnly keeps the guest from changing it, through this name. Recursive does so for mounts below it, too.
	ReadOnly, Recursive bool
	// Submounts shares what is mounted below a directory, as long as the host has it mounted.
	Submounts bool
	// Follow lets later mounts of the host below the directory appear, as mountPropagation HostToContainer asks for.
	Follow bool
}

// Mount is a mount as containerd describes it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// Bind shares an open file or directory (O_PATH is enough) under a name, which must be new. It returns the path in the guest.
func (s *Share) Bind(source *os.File, name string, o BindOptions) (guestPath string, err error) {
	info, err := source.Stat()
	if err != nil {
		return "", fmt.Errorf("examining what is to be shared: %w", err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", fmt.Errorf("a %s cannot be shared with a guest", kindOf(info.Mode()))
	}
	s.ops.RLock()
	defer s.ops.RUnlock()
	if err := s.take(name); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove(name))
		}
	}()
	if info.IsDir() {
		err = unix.Mkdirat(int(s.names.Fd()), name, 0o755)
	} else {
		err = s.makeFile(name)
	}
	if err != nil {
		return "", fmt.Errorf("making %s: %w", name, err)
	}
	if err := s.bindAt(source, name, o); err != nil {
		return "", fmt.Errorf("sharing it as %s: %w", name, err)
	}
	return path.Join(GuestDir, name), nil
}

func (s *Share) bindAt(source *os.File, rel string, o BindOptions) error {
	target, err := s.point(rel)
	if err != nil {
		return err
	}
	defer target.Close()
	// Device nodes and set-user-id programs of a guest have no business on the host.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	flags := 0
	if o.Submounts {
		flags = unix.AT_RECURSIVE
	}
	// A copy that does not follow keeps what the host unmounts below it: a volume or network namespace of another pod would stay busy, and the
	// directory it was mounted on could not be removed. So what has mounts below follows; new ones appear with it.
	follow := o.Follow
	if o.Submounts && !follow {
		if follow, err = HasMounts(source); err != nil {
			return err
		}
	}
	if follow {
		attr.Propagation = unix.MS_SLAVE
	}
	tree, err := openTree(source, attr, flags)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if o.ReadOnly {
		ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		recursive := uint(0)
		if o.Recursive {
			recursive = unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recursive, &ro); err != nil {
			return fmt.Errorf("making it read-only: %w", err)
		}
	}
	return attach(tree, target)
}

// HasMounts says whether something is mounted below an open directory.
func HasMounts(source *os.File) (bool, error) {
	dir, err := os.Readlink(fdPath(source))
	if err != nil {
		return false, fmt.Errorf("looking for mounts: %w", err)
	}
	points, err := mountsBelow(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return false, fmt.Errorf("looking for mounts below %s: %w", dir, err)
	}
	return slices.ContainsFunc(points, func(p string) bool { return p != dir }), nil
}

// Mount shares a container's root file system, made by containerd's mounts one on top of the other, and returns its path in the guest.
func (s *Share) Mount(name string, mounts []Mount) (guestPath string, err error) {
	if len(mounts) == 0 || len(mounts) > maxMounts {
		return "", fmt.Errorf("root file system of %d mounts: expected 1 to %d", len(mounts), maxMounts)
	}
	s.ops.RLock()
	defer s.ops.RUnlock()
	if err := s.take(name); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove(name))
		}
	}()
	rel := path.Join(name, rootfsName)
	for _, dir := range []string{name, rel} {
		if err := unix.Mkdirat(int(s.names.Fd()), dir, 0o755); err != nil {
			return "", fmt.Errorf("making %s: %w", dir, err)
		}
	}
	for i, m := range mounts {
		if err := s.mountOne(m, rel); err != nil {
			return "", fmt.Errorf("mount %d of the root file system (%.40s): %w", i, m.Type, err)
		}
	}
	return path.Join(GuestDir, rel), nil
}

func (s *Share) mountOne(m Mount, rel string) error {
	if m.Target != "" && m.Target != "/" {
		return fmt.Errorf("target %q inside of the root file system is not supported\nhint: use the overlayfs snapshotter", m.Target)
	}
	flags, data, err := mountOptions(m.Options)
	if err != nil {
		return err
	}
	if m.Type == "bind" || m.Type == "rbind" || flags&unix.MS_BIND != 0 {
		src, err := openAt(unix.AT_FDCWD, m.Source, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer src.Close()
		return s.bindAt(src, rel, BindOptions{ReadOnly: flags&unix.MS_RDONLY != 0, Submounts: flags&unix.MS_REC != 0})
	}
	if strings.Contains(m.Type, "/") || strings.HasPrefix(m.Type, "fuse") || m.Type == "" {
		return fmt.Errorf("file system %.60q is not supported\nhint: use the overlayfs, native, devmapper or blockfile snapshotter", m.Type)
	}
	target, err := s.point(rel)
	if err != nil {
		return err
	}
	defer target.Close()
	return mountAt(m.Source, fdPath(target), m.Type, flags|unix.MS_NODEV|unix.MS_NOSUID, data)
}

// mountAt is mount(2), whose text of options must fit into one page. For more layers than that the common part of their paths becomes
// the working directory of a thread that exists for this call only.
func mountAt(source, target, fstype string, flags uintptr, data string) error {
	if len(data) < os.Getpagesize() {
		return unix.Mount(source, target, fstype, flags, data)
	}
	dir, short := shorten(data)
	if dir == "" || len(short) >= os.Getpagesize() {
		return fmt.Errorf("%d bytes of options are more than the kernel takes\nhint: an image with fewer layers, or layers at shorter paths", len(data))
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it the directory
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			// The target is a path of this thread group's leader, which stays the same.
			err = unix.Mount(source, target, fstype, flags, short)
		}
		done <- err
	}()
	return <-done
}

// shorten takes the directory that all lower layers share out of overlay's options. A layer with an escaped character is left alone.
func shorten(data string) (dir, short string) {
	opts := strings.Split(data, ",")
	for i, o := range opts {
		text, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok || strings.Contains(text, `\`) {
			continue
		}
		layers := strings.Split(text, ":")
		dir = path.Dir(layers[0])
		for _, l := range layers {
			if !path.IsAbs(l) {
				return "", data
			}
			for dir != "/" && !strings.HasPrefix(l, dir+"/") {
				dir = path.Dir(dir)
			}
		}
		if dir == "/" {
			return "", data
		}
		for j, l := range layers {
			layers[j] = strings.TrimPrefix(l, dir+"/")
		}
		opts[i] = "lowerdir=" + strings.Join(layers, ":")
		return dir, strings.Join(opts, ",")
	}
	return "", data
}

// mountOptions parts flags from the text for the file system.
func mountOptions(options []string) (uintptr, string, error) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "rw": 0, "nosuid": unix.MS_NOSUID, "suid": 0, "nodev": unix.MS_NODEV, "dev": 0, "noexec": unix.MS_NOEXEC,
		"exec": 0, "sync": unix.MS_SYNCHRONOUS, "async": 0, "dirsync": unix.MS_DIRSYNC, "noatime": unix.MS_NOATIME, "atime": 0,
		"nodiratime": unix.MS_NODIRATIME, "diratime": 0, "relatime": unix.MS_RELATIME, "norelatime": 0, "strictatime": unix.MS_STRICTATIME,
		"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "defaults": 0, "": 0,
		// Propagation is decided by BindOptions.
		"private": 0, "rprivate": 0, "slave": 0, "rslave": 0, "shared": 0, "rshared": 0,
	}
	var flags uintptr
	var data []string
	for _, o := range options {
		if f, ok := known[o]; ok {
			flags |= f
			continue
		}
		name, _, _ := strings.Cut(o, "=")
		if name == "loop" || strings.HasPrefix(name, "X-") || strings.HasPrefix(name, "io.katacontainers.") {
			return 0, "", fmt.Errorf("mount option %.80q is not supported here", o)
		}
		data = append(data, o)
	}
	return flags, strings.Join(data, ","), nil
}

// Remove takes a name away from the guest. What the guest still has open stays readable to it until it closes it. A name that is not
// shared is no error, nor is one of a Share that is closed.
func (s *Share) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.ops.RLock()
	defer s.ops.RUnlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	return s.remove(name)
}

func (s *Share) remove(name string) error {
	for _, rel := range []string{path.Join(name, rootfsName), name} {
		// What exists in names is a place where we mount; below a volume nothing is.
		var st unix.Stat_t
		if unix.Fstatat(int(s.names.Fd()), rel, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if err := unmountAll(s.shared, rel); err != nil {
			return fmt.Errorf("unmounting %s: %w", rel, err)
		}
	}
	if err := removeEmpty(s.names, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	s.mu.Lock()
	delete(s.used, name)
	s.mu.Unlock()
	return nil
}

// take reserves a name until Remove; two requests cannot make the same thing.
func (s *Share) take(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("the shared directory is closed")
	case s.used[name]:
		return fmt.Errorf("%s is shared already: %w", name, fs.ErrExist)
	}
	s.used[name] = true
	return nil
}

func (s *Share) makeFile(name string) error {
	fd, err := unix.Openat(int(s.names.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// point opens the mount point as the mounts below shared have it.
func (s *Share) point(rel string) (*os.File, error) {
	return openAt(int(s.shared.Fd()), rel, unix.O_PATH|unix.O_NOFOLLOW)
}

func checkName(name string) error {
	if name == "" || len(name) > unix.NAME_MAX || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return fmt.Errorf("name %.80q cannot be shared", name)
	}
	return nil
}

// bindTo mounts a copy of source on target.
func bindTo(source, target *os.File, attr unix.MountAttr, flags int) error {
	tree, err := openTree(source, attr, flags)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(tree, target)
}

// openTree takes a detached copy of the mounts at source. It is separated from the original's propagation before anything can be
// unmounted in it.
func openTree(source *os.File, attr unix.MountAttr, flags int) (int, error) {
	tree, err := unix.OpenTree(int(source.Fd()), "", uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|flags))
	if err != nil {
		return -1, fmt.Errorf("copying the mount: %w", err)
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("setting the attributes of the mount: %w", err)
	}
	return tree, nil
}

func attach(tree int, target *os.File) error {
	if err := unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attaching the mount: %w", err)
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeCharDevice != 0:
		return "character device"
	case m&fs.ModeDevice != 0:
		return "block device"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "file of this type"
}
