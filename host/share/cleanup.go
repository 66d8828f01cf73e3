package share

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Cleanup removes the directory of a Share whose process is gone: all mounts at and below dir, then what we made in it. It never
// deletes through a mount, never follows a symbolic link, and deletes no file that has content; what it cannot remove so is an error. A
// directory that does not exist is none.
func Cleanup(ctx context.Context, dir string) error {
	if dir = filepath.Clean(dir); dir == "/" || !filepath.IsAbs(dir) {
		return fmt.Errorf("%q cannot be a shared directory", dir)
	}
	above, err := filepath.EvalSymlinks(filepath.Dir(dir)) // the kernel's list has paths without links
	var info fs.FileInfo
	real := filepath.Join(above, filepath.Base(dir))
	if err == nil {
		info, err = os.Lstat(real)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding %s: %w", dir, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory, and so not ours", dir)
	}
	if err := unmountBelow(ctx, real); err != nil {
		return fmt.Errorf("unmounting below %s: %w", dir, err)
	}
	parent, err := openDir(unix.AT_FDCWD, filepath.Dir(real))
	if err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	defer parent.Close()
	if err := removeEmpty(parent, filepath.Base(real)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}

// unmountBelow detaches every mount at dir and below it. Each one takes with it what is mounted inside of it, so that only the outermost
// are named: directories further down may be a guest's to exchange for symbolic links.
func unmountBelow(ctx context.Context, dir string) error {
	before := -1
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		points, err := mountsBelow(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		if before >= 0 && len(points) >= before {
			return fmt.Errorf("%d mounts stay, the first of them %s", len(points), points[0])
		}
		before = len(points)
		for i, p := range points {
			inside := slices.ContainsFunc(points, func(q string) bool { return strings.HasPrefix(p, q+"/") })
			if inside || slices.Contains(points[:i], p) {
				continue
			}
			if err := unmountAll(nil, p); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
	}
}

// unmountAll detaches what is mounted one on top of the other at a path, relative to at unless that is nil. No symbolic link is followed
// on the way, and a path that is no mount point is left alone.
func unmountAll(at *os.File, rel string) error {
	dir := unix.AT_FDCWD
	if at != nil {
		dir = int(at.Fd())
	}
	for range maxMounts + 1 {
		fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), rel)
		// The name of an open file leads to the mount that was opened, whatever has happened to its path since.
		err = unix.Unmount(fdPath(f), unix.MNT_DETACH)
		f.Close()
		if errors.Is(err, unix.EINVAL) { // not the root of a mount
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("it is mounted over and over again")
}

// mountsBelow lists the mount points at dir and below, in the order of the kernel's list.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f, dir)
}

func parseMounts(r io.Reader, dir string) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 16<<10), 1<<20) // overlay's options make long lines
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) < 6 {
			continue
		}
		p := unescape(fields[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	return points, lines.Err()
}

// unescape undoes the kernel's \ooo for blanks, tabs, line breaks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

// removeEmpty removes a file or directory of ours: directories down to empty files and sockets, all on one mount.
func removeEmpty(parent *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
	case unix.S_IFREG:
		if st.Size != 0 {
			return fmt.Errorf("%s has content, and so is not ours", name)
		}
	case unix.S_IFDIR:
		if err := emptyDir(parent, name); err != nil {
			return err
		}
		if err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); err != nil {
			return &os.PathError{Op: "rmdir", Path: name, Err: err}
		}
		return nil
	default:
		return fmt.Errorf("%s is neither a file, a socket nor a directory, and so is not ours", name)
	}
	if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}

// emptyDir removes what is in a directory. A mount on it, or in it, is an error: RESOLVE_NO_XDEV does not enter one.
func emptyDir(parent *os.File, name string) error {
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
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
		if err := removeEmpty(d, n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s/%w", name, err)
		}
	}
	return nil
}
