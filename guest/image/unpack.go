package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrOpaque    = "trusted.overlay.opaque"
	paxXattr       = "SCHILY.xattr."
)

// unpacker writes one layer's tar stream into an empty directory.
//
// Every name is resolved by the kernel below that directory (openat2 with RESOLVE_BENEATH): a path that leaves it by
// "..", or through a symbolic link of the same layer, is an error. Files are created with O_EXCL after removing what
// had the name; nothing is ever written through a link.
type unpacker struct {
	root    int // file descriptor of the layer directory
	use     *usage
	buf     []byte
	noXattr bool // the file system has no extended attributes
	asRoot  bool // owners, device whiteouts and trusted attributes are possible

	parent     int // cache of the last parent directory
	parentName string
	dirs       []dirTimes
	dirBytes   int
}

type dirTimes struct {
	name string
	hdr  tar.Header
}

// unpack writes the tar stream r into dir, which must exist and be empty.
func unpack(r io.Reader, dir string, use *usage) (err error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening layer directory: %w", err)
	}
	u := &unpacker{root: root, use: use, buf: make([]byte, 64<<10), parent: -1, asRoot: unix.Geteuid() == 0}
	defer func() {
		u.forgetParent()
		unix.Close(root)
	}()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.setDirTimes()
		}
		if err != nil {
			return fmt.Errorf("reading the layer's tar stream: %w", err)
		}
		if err := use.addEntry(); err != nil {
			return err
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", truncate(hdr.Name, 200), err)
		}
	}
}

// entryName cleans a name of a tar entry: relative to the layer, without "..". A leading slash means the layer's root.
func (u *unpacker) entryName(name string) (string, error) {
	if len(name) > u.use.limits.MaxPathBytes {
		return "", &LimitError{What: "length of its path", Limit: int64(u.use.limits.MaxPathBytes)}
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("path contains a zero byte")
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", errors.New("path traversal: the path contains \"..\"")
		}
	}
	return path.Clean("/" + name)[1:], nil
}

func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		return fmt.Errorf("device nodes are not allowed in a layer (%s device %d:%d)",
			map[byte]string{tar.TypeChar: "character", tar.TypeBlock: "block"}[hdr.Typeflag], hdr.Devmajor, hdr.Devminor)
	}
	name, err := u.entryName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errors.New("the layer's root is not a directory")
		}
		return u.directory("", hdr)
	}
	base := path.Base(name)
	if rest, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return u.whiteout(path.Dir(name), base, rest)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(name, hdr)
	case tar.TypeReg, '\x00', tar.TypeGNUSparse, tar.TypeCont:
		return u.regular(name, hdr, content)
	case tar.TypeSymlink:
		return u.symlink(name, hdr)
	case tar.TypeLink:
		return u.hardlink(name, hdr)
	case tar.TypeFifo:
		return u.fifo(name, hdr)
	}
	return fmt.Errorf("unknown entry type %q", hdr.Typeflag)
}

func (u *unpacker) directory(name string, hdr *tar.Header) error {
	if name != "" {
		dir, base, err := u.place(name)
		if err != nil {
			return err
		}
		if err := u.mkdir(dir, base, name); err != nil {
			return err
		}
	}
	fd, err := u.openDir(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if u.dirBytes += len(name) + 64; u.dirBytes > maxDirPathBytes {
		return &LimitError{What: "sum of the layer's directory names", Limit: maxDirPathBytes}
	}
	u.dirs = append(u.dirs, dirTimes{name: name, hdr: tar.Header{ModTime: hdr.ModTime, AccessTime: hdr.AccessTime}})
	return u.metadata(fd, hdr)
}

// mkdir makes a directory unless there is one. A whiteout of the same name becomes an opaque directory; any other
// file goes.
func (u *unpacker) mkdir(dir int, base, name string) error {
	err := unix.Mkdirat(dir, base, 0o755)
	if !errors.Is(err, unix.EEXIST) {
		return wrap("making directory", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wrap("looking at what has the name", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil {
		return wrap("removing what had the name", err)
	}
	if err := unix.Mkdirat(dir, base, 0o755); err != nil {
		return wrap("making directory", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR { // only a whiteout can be one
		return u.opaque(name)
	}
	return nil
}

func (u *unpacker) regular(name string, hdr *tar.Header, content io.Reader) error {
	if err := u.use.addContent(hdr.Size); err != nil {
		return err
	}
	dir, base, err := u.vacate(name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return wrap("creating file", err)
	}
	defer unix.Close(fd)
	if n, err := io.CopyBuffer(fdWriter(fd), onlyReader{content}, u.buf); err != nil {
		return fmt.Errorf("writing %d of %d bytes: %w", n, hdr.Size, err)
	}
	if err := u.metadata(fd, hdr); err != nil {
		return err
	}
	return u.times(dir, base, hdr)
}

func (u *unpacker) symlink(name string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) > u.use.limits.MaxPathBytes || strings.IndexByte(hdr.Linkname, 0) >= 0 {
		return errors.New("symbolic link has an unusable target")
	}
	dir, base, err := u.vacate(name)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(hdr.Linkname, dir, base); err != nil {
		return wrap("making symbolic link", err)
	}
	if err := u.chown(dir, base, hdr); err != nil {
		return err
	}
	return u.times(dir, base, hdr)
}

// hardlink links to a file of the same layer. The target is named from the layer's root and is not followed.
func (u *unpacker) hardlink(name string, hdr *tar.Header) error {
	target, err := u.entryName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", truncate(hdr.Linkname, 200), err)
	}
	if target == "" || target == name {
		return fmt.Errorf("hard link to %q, which is not a file of the layer", truncate(hdr.Linkname, 200))
	}
	from, err := u.openDir(path.Dir(target))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", truncate(hdr.Linkname, 200), err)
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %q: %w", truncate(hdr.Linkname, 200), err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
	default:
		return fmt.Errorf("hard link to %q, which is not a regular file", truncate(hdr.Linkname, 200))
	}
	dir, base, err := u.vacate(name)
	if err != nil {
		return err
	}
	return wrap("making hard link", unix.Linkat(from, path.Base(target), dir, base, 0))
}

func (u *unpacker) fifo(name string, hdr *tar.Header) error {
	dir, base, err := u.vacate(name)
	if err != nil {
		return err
	}
	if err := unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0); err != nil {
		return wrap("making named pipe", err)
	}
	if err := u.chown(dir, base, hdr); err != nil {
		return err
	}
	if err := unix.Fchmodat(dir, base, uint32(hdr.Mode)&0o7777, 0); err != nil {
		return wrap("setting mode", err)
	}
	return u.times(dir, base, hdr)
}

// whiteout hides a file, or all files, of the layers below.
func (u *unpacker) whiteout(dirName, base, hidden string) error {
	if dirName == "." {
		dirName = ""
	}
	if base == whiteoutOpaque {
		if dirName != "" {
			if _, _, err := u.place(dirName + "/x"); err != nil {
				return err
			}
		}
		return u.opaque(dirName)
	}
	if strings.HasPrefix(hidden, whiteoutPrefix) {
		return nil // .wh..wh.plnk and the like: aufs's own
	}
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("whiteout of an impossible name")
	}
	name := path.Join(dirName, hidden)
	dir, base, err := u.place(name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		// The layer itself has the name, which hides the lower ones already; a directory must not be merged.
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return u.opaque(name)
		}
		return nil
	}
	if err := unix.Mknodat(dir, base, unix.S_IFCHR, 0); err != nil {
		return wrap("making whiteout", err)
	}
	return nil
}

func (u *unpacker) opaque(name string) error {
	fd, err := u.openDir(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return wrap("making directory opaque", unix.Fsetxattr(fd, xattrOpaque, []byte("y"), 0))
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// onlyReader hides WriteTo of the tar reader, which would seek instead of write.
type onlyReader struct{ io.Reader }

type fdWriter int

func (fd fdWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := unix.Write(int(fd), p[written:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}
