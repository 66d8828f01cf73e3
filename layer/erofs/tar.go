package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"

	pieceSize = 64 << 10 // holes are looked for in pieces of so many bytes
	maxChunks = 1 << 14  // of one file with holes
)

var zeroPiece [pieceSize]byte

// read takes the whole archive: data goes to w, the rest into the tree.
func (t *tree) read(stream io.Reader, w *writer) error {
	r := tar.NewReader(stream)
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return w.ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("reading the layer's tar stream: %w", err)
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := t.entry(hdr, r, w); err != nil {
			name := hdr.Name
			if len(name) > 200 {
				name = name[:200] + "…"
			}
			return fmt.Errorf("entry %q of the layer: %w", name, err)
		}
	}
}

func (t *tree) entry(hdr *tar.Header, r io.Reader, w *writer) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	dirName, base := split(name)
	if err := t.count(len(base)); err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return t.markers(dirName, base, hidden)
	}
	node, err := t.newInode(hdr)
	if err != nil {
		return err
	}
	if name == "" {
		if !node.is(typeDir) {
			return errors.New("the layer's root is not a directory")
		}
		t.root.become(node)
		return nil
	}
	dir, err := t.dir(dirName, true)
	if err != nil {
		return err
	}
	old := dir.children[base]
	switch hdr.Typeflag {
	case tar.TypeDir:
		if old != nil && old.is(typeDir) {
			old.become(node)
			return nil
		}
		node.children, node.parent, node.depth = map[string]*inode{}, dir, dir.depth+1
	case tar.TypeLink:
		if node, err = t.linked(hdr.Linkname); err != nil {
			return fmt.Errorf("hard link to %q: %w", hdr.Linkname[:min(len(hdr.Linkname), 200)], err)
		}
		if node == old {
			return nil
		}
		node.nlink++
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if err := t.data(node, hdr.Size, r, w); err != nil {
			return err
		}
	}
	return t.put(dir, base, node)
}

// markers takes what AUFS and OCI write as files with special names.
func (t *tree) markers(dirName, base, hidden string) error {
	if base != whiteoutOpaque && strings.HasPrefix(hidden, whiteoutPrefix) {
		return nil // .wh..wh.plnk and the like: AUFS's own
	}
	dir, err := t.dir(dirName, true)
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		dir.opaque = true
		return nil
	}
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("whiteout of an impossible name")
	}
	return t.hide(dir, hidden)
}

// newInode makes an inode of a header; what it leads to is for the caller.
func (t *tree) newInode(hdr *tar.Header) (*inode, error) {
	i := &inode{mode: uint16(hdr.Mode & 0o7777), nlink: 1, start: nullBlock, pos: -1}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		i.mode |= typeRegular
	case tar.TypeLink: // gets the other file's
		return i, nil
	case tar.TypeSymlink:
		i.mode = typeSymlink | 0o777 // links have no other on Linux
		i.size = int64(len(hdr.Linkname))
		if i.size == 0 || i.size > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("symbolic link with a target of %d bytes, want 1 to %d and no zero byte", i.size, maxPath)
		}
		i.target = strings.Clone(hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		i.mode |= map[byte]uint16{tar.TypeChar: typeChar, tar.TypeBlock: typeBlock}[hdr.Typeflag]
		if hdr.Devmajor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor < 0 || hdr.Devminor > 0xfffff {
			return nil, fmt.Errorf("device %d:%d: want at most 4095:1048575", hdr.Devmajor, hdr.Devminor)
		}
		major, minor := uint32(hdr.Devmajor), uint32(hdr.Devminor)
		i.rdev = minor&0xff | major<<8 | minor&^0xff<<12
	case tar.TypeFifo:
		i.mode |= typeFifo
	case tar.TypeDir:
		i.mode |= typeDir
		i.nlink = 2
	default:
		return nil, fmt.Errorf("unknown type %q", hdr.Typeflag)
	}
	for what, id := range map[string]int{"user": hdr.Uid, "group": hdr.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return nil, fmt.Errorf("%s %d: want 0 to %d", what, id, uint32(math.MaxUint32-1))
		}
	}
	i.uid, i.gid = uint32(hdr.Uid), uint32(hdr.Gid)
	i.setTime(hdr.ModTime)
	var err error
	if i.xattrs, err = readXattrs(hdr.PAXRecords); err != nil {
		return nil, err
	}
	text := len(i.target)
	for _, x := range i.xattrs {
		text += x.size() + xattrMemory
	}
	return i, t.countText(text)
}

// become takes what a later entry says of the same directory.
func (i *inode) become(other *inode) {
	i.mode, i.uid, i.gid, i.mtime, i.nsec, i.xattrs = other.mode, other.uid, other.gid, other.mtime, other.nsec, other.xattrs
}

// linked finds the target of a hard link.
func (t *tree) linked(name string) (*inode, error) {
	name, err := clean(name)
	if err != nil {
		return nil, err
	}
	dirName, base := split(name)
	dir, err := t.dir(dirName, false)
	if err != nil {
		return nil, err
	}
	if dir == nil || dir.children[base] == nil || dir.children[base].whiteout {
		return nil, errors.New("no such file in the layer before it")
	}
	node := dir.children[base]
	if node.is(typeDir) {
		return nil, errors.New("it is a directory")
	}
	return node, nil
}

// data copies the content of a file.
func (t *tree) data(i *inode, size int64, r io.Reader, w *writer) error {
	if t.bytes += size; size < 0 || t.bytes < 0 || t.bytes > maxHoles {
		return &LimitError{What: "sum of the sizes of the layer's files", Limit: maxHoles}
	}
	i.size = size
	if size == 0 {
		return nil
	}
	i.start = w.block()
	if size >= pieceSize {
		return t.sparse(i, r, w)
	}
	for left := int(size); left > 0; {
		room, err := w.room()
		if err != nil {
			return err
		}
		n := min(left, len(room))
		if _, err := io.ReadFull(r, room[:n]); err != nil {
			return content(err)
		}
		w.advance(n)
		left -= n
	}
	return w.align()
}

// sparse copies the content of a file that is large enough for holes: chunks of zeros are left out. The size of chunks depends on
// that of the file alone, so that the result is the same however a file with holes was archived.
func (t *tree) sparse(i *inode, r io.Reader, w *writer) error {
	bits := uint8(16)
	for i.size>>bits > maxChunks {
		bits++
	}
	chunk := int64(1) << bits
	var zeros int64  // at the start of the chunk, not written yet
	var written bool // the chunk has something else
	for off := int64(0); off < i.size; {
		if err := w.ctx.Err(); err != nil { // holes come fast and have no end in the stream
			return err
		}
		room, err := w.room()
		if err != nil {
			return err
		}
		n := int(min(pieceSize, i.size-off))
		direct := len(room) >= n && zeros == 0
		if !direct {
			if t.buf == nil {
				t.buf = make([]byte, pieceSize)
			}
			room = t.buf
		}
		if _, err := io.ReadFull(r, room[:n]); err != nil {
			return content(err)
		}
		off += int64(n)
		if written || !bytes.Equal(room[:n], zeroPiece[:n]) {
			if direct {
				w.advance(n)
			} else {
				if err := w.zeros(zeros); err != nil {
					return err
				}
				if _, err := w.Write(room[:n]); err != nil {
					return err
				}
			}
			zeros, written = 0, true
		} else {
			zeros += int64(n)
		}
		if off%chunk == 0 || off == i.size {
			if !written {
				i.hole(uint32((off - 1) >> bits))
			}
			zeros, written = 0, false
		}
	}
	if i.holes != nil {
		i.chunkBits, t.chunked = bits, true
	}
	return w.align()
}

// hole adds a chunk that is not there.
func (i *inode) hole(chunk uint32) {
	if n := len(i.holes); n > 0 && i.holes[n-1].first+i.holes[n-1].n == chunk {
		i.holes[n-1].n++
		return
	}
	i.holes = append(i.holes, run{chunk, 1})
}

func content(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading its content: %w", err)
}
