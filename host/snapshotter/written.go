package snapshotter

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names by which a layer says that something of the layers below is gone.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

const (
	overlayXattrs = "trusted.overlay."
	opaqueXattr   = overlayXattrs + "opaque"
	maxXattrs     = 64 << 10 // the kernel's own limit
)

// tarOf is an upper directory of overlayfs as the tar of a layer: the same directory gives the same bytes.
func tarOf(ctx context.Context, dir string) tarStream {
	r, w := io.Pipe()
	go func() {
		t := &tarWriter{w: tar.NewWriter(w), links: map[[2]uint64]string{}}
		err := walkUpper(ctx, dir, false, t.entry)
		if err != nil {
			err = fmt.Errorf("reading what was written into %s: %w", dir, err)
		}
		if err == nil {
			err = t.w.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

type tarWriter struct {
	w     *tar.Writer
	links map[[2]uint64]string // first name of a file with several, by device and inode
}

// entry writes one file. Sockets are left out, as tar has none.
func (t *tarWriter) entry(name string, f *upperFile) error {
	st := &f.Stat
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX}
	var body *os.File
	switch f.Type() {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if st.Nlink > 1 {
			inode := [2]uint64{st.Dev, st.Ino}
			if first, seen := t.links[inode]; seen {
				h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
				return t.w.WriteHeader(h)
			}
			t.links[inode] = name
		}
		var err error
		if body, err = f.Open(); err != nil {
			return err
		}
		defer body.Close()
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		target, err := f.Target()
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR:
		if st.Rdev == 0 { // overlayfs's own whiteout
			dir, base := filepath.Split(name)
			return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
		}
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil
	}
	opaque, err := xattrs(f, h)
	if err != nil {
		return err
	}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	if body != nil {
		if n, err := io.Copy(t.w, io.LimitReader(body, h.Size)); err != nil {
			return err
		} else if n != h.Size {
			return fmt.Errorf("it had %d bytes and now %d: %w", h.Size, n, io.ErrUnexpectedEOF)
		}
	}
	if opaque {
		return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(name, opaqueMarker), ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
	}
	return nil
}

// xattrs adds a file's extended attributes to a header. What overlayfs notes for itself is left out; that a directory hides those
// below is returned. The label of SELinux is the node's, not the image's.
func xattrs(f *upperFile, h *tar.Header) (opaque bool, err error) {
	buf := make([]byte, maxXattrs)
	n, err := unix.Listxattr(f.path(), buf)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("listing its extended attributes: %w", err)
	}
	value := make([]byte, maxXattrs)
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		size, err := unix.Getxattr(f.path(), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("reading its attribute %s: %w", name, err)
		}
		switch {
		case name == opaqueXattr:
			opaque = opaque || string(value[:size]) == "y"
		case name == overlayXattrs+"redirect" || name == overlayXattrs+"metacopy":
			return false, fmt.Errorf("it has the attribute %s, so that its content is in another layer", name)
		case strings.HasPrefix(name, overlayXattrs):
		default:
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = string(value[:size])
		}
	}
	return opaque, nil
}
