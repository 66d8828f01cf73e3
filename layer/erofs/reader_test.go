package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
)

// reader walks an image as the kernel would, and reports what the kernel could not use.
type reader struct {
	t      *testing.T
	image  []byte
	meta   int
	inodes map[uint64]uint32 // number of an inode's place: links that lead to it
	nlinks map[uint64]uint32
}

// checkImage reads the whole image.
func checkImage(t *testing.T, image []byte) {
	t.Helper()
	s := image[1024:4096]
	le := binary.LittleEndian
	if le.Uint32(s) != magic || s[12] != 12 || int(le.Uint32(s[36:]))*BlockSize != len(image) {
		t.Fatalf("superblock %x", s[:128])
	}
	sum := le.Uint32(s[4:])
	zeroed := slices.Clone(s)
	clear(zeroed[4:8])
	if got := ^crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); got != sum {
		t.Errorf("checksum %x, want %x", sum, got)
	}
	r := &reader{t: t, image: image, meta: int(le.Uint32(s[40:])) * BlockSize, inodes: map[uint64]uint32{}, nlinks: map[uint64]uint32{}}
	root := uint64(le.Uint16(s[14:]))
	r.dir(root, root, 0)
	r.inodes[root] = r.nlinks[root]
	if len(r.inodes) != int(le.Uint64(s[16:])) {
		t.Errorf("%d inodes, the superblock says %d", len(r.inodes), le.Uint64(s[16:]))
	}
	for nid, links := range r.inodes {
		if r.nlinks[nid] != links {
			t.Errorf("inode %d says %d links, has %d", nid, r.nlinks[nid], links)
		}
	}
}

// inode returns the fixed part, what follows it and the attributes, and the layout.
func (r *reader) inode(nid uint64) (b []byte, layout int, after int) {
	pos := r.meta + int(nid)*32
	b = r.image[pos : pos+64]
	format := binary.LittleEndian.Uint16(b)
	if format&1 != 1 || pos/BlockSize != (pos+63)/BlockSize {
		r.t.Fatalf("inode %d: format %x at %d", nid, format, pos)
	}
	after = pos + 64
	if words := int(binary.LittleEndian.Uint16(b[2:])); words > 0 {
		end := after + 12 + 4*(words-1)
		for at := after + 12; at < end; {
			at += (4 + int(r.image[at]) + int(binary.LittleEndian.Uint16(r.image[at+2:])) + 3) &^ 3
			if at > end {
				r.t.Fatalf("inode %d: attributes end at %d, want %d", nid, at, end)
			}
		}
		after = end
	}
	return b, int(format >> 1), after
}

// content returns what an inode with such a layout has.
func (r *reader) content(nid uint64) []byte {
	b, layout, after := r.inode(nid)
	size := int(binary.LittleEndian.Uint64(b[8:]))
	union := int(binary.LittleEndian.Uint32(b[16:]))
	if size == 0 {
		return nil
	}
	switch layout {
	case layoutRaw:
		return r.image[union*BlockSize:][:size]
	case layoutInline:
		tail := size % BlockSize
		if after/BlockSize != (after+tail-1)/BlockSize {
			r.t.Fatalf("inode %d: tail of %d bytes at %d leaves its block", nid, tail, after)
		}
		var data []byte
		if size > tail {
			data = append(data, r.image[union*BlockSize:][:size-tail]...)
		}
		return append(data, r.image[after:after+tail]...)
	case layoutChunks:
		data := make([]byte, size)
		chunk := BlockSize << union
		for n := 0; n*chunk < size; n++ {
			if block := binary.LittleEndian.Uint32(r.image[after+4*n:]); block != nullBlock {
				copy(data[n*chunk:min(size, (n+1)*chunk)], r.image[int(block)*BlockSize:])
			}
		}
		return data
	}
	r.t.Fatalf("inode %d: layout %d", nid, layout)
	return nil
}

func (r *reader) dir(nid, parent uint64, depth int) {
	b, _, _ := r.inode(nid)
	r.nlinks[nid] = binary.LittleEndian.Uint32(b[44:])
	links := uint32(2)
	data, last := r.content(nid), ""
	dots := 0
	for len(data) > 0 {
		block := data[:min(len(data), BlockSize)]
		data = data[len(block):]
		count := int(binary.LittleEndian.Uint16(block[8:])) / 12
		for n := range count {
			entry := block[12*n:]
			begin, end := int(binary.LittleEndian.Uint16(entry[8:])), len(block)
			if n+1 < count {
				end = int(binary.LittleEndian.Uint16(entry[12+8:]))
			}
			name := strings.TrimRight(string(block[begin:end]), "\x00")
			if name <= last || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
				r.t.Errorf("name %q follows %q", name, last)
			}
			last = name
			child := binary.LittleEndian.Uint64(entry)
			switch {
			case name == "." && child == nid, name == ".." && child == parent:
				dots++
			case name == "." || name == "..":
				r.t.Errorf("%q leads to %d", name, child)
			case entry[10] == 2:
				links++
				r.dir(child, nid, depth+1)
				r.inodes[child] = r.nlinks[child]
			default:
				r.inodes[child]++
				b, _, _ := r.inode(child)
				r.nlinks[child] = binary.LittleEndian.Uint32(b[44:])
				if mode := binary.LittleEndian.Uint16(b[4:]) & typeMask; mode == typeRegular || mode == typeSymlink {
					r.content(child)
				}
			}
		}
	}
	if dots != 2 || links != r.nlinks[nid] {
		r.t.Errorf("directory %d has %d of . and .., %d links, says %d", nid, dots, links, r.nlinks[nid])
	}
}
