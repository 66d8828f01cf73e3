package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"math"
	"slices"
)

const (
	nullBlock = math.MaxUint32 // no block

	magic        = 0xE0F5E1E2
	superOffset  = 1024
	compatSum    = 0x1 // the superblock has a checksum
	compatMtime  = 0x2 // inodes have times of their own
	incompatHole = 0x4 // there are files of chunks

	inodeSize    = 64 // extended
	inodeUnit    = 32
	layoutRaw    = 0
	layoutInline = 2
	layoutChunks = 4

	direntSize = 12
)

// plan is where everything of the metadata goes.
type plan struct {
	order []*inode // as they lie, the root first
	size  int64    // of all inodes in bytes
	first int64    // block of the inodes
	next  int64    // next free block for what does not fit behind an inode
}

// write lays out the metadata, writes it and then block 0, and returns the size of the image in blocks.
func (t *tree) write(w *writer) (int64, error) {
	p := &plan{first: w.block()}
	p.inodes(t.root)
	// A number of block has 32 bits.
	p.next = p.first + (p.size+BlockSize-1)/BlockSize
	for _, i := range p.order {
		p.outside(i)
	}
	if p.next >= nullBlock {
		return 0, &LimitError{What: "size of the layer's file system in blocks", Limit: nullBlock}
	}
	start := w.pos()
	var b []byte
	for _, i := range p.order {
		if err := w.zeros(start + i.pos - w.pos()); err != nil {
			return 0, err
		}
		b = i.append(b[:0])
		if _, err := w.Write(b); err != nil {
			return 0, err
		}
		if err := i.tail(w); err != nil {
			return 0, err
		}
	}
	if err := w.align(); err != nil {
		return 0, err
	}
	for _, i := range p.order {
		if err := i.blocks(w); err != nil {
			return 0, err
		}
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	buf, err := w.sink.Buffer(w.ctx)
	if err != nil {
		return 0, err
	}
	return p.next, w.sink.Blocks(w.ctx, 0, t.superblock(buf[:0], p))
}

// inodes gives each inode its place: those of one directory lie together, in the order of names, as a listing asks for them.
func (p *plan) inodes(root *inode) {
	p.size = inodeUnit // no inode has the number 0, which some programs take for none
	p.place(root)
	for dirs := []*inode{root}; len(dirs) > 0; {
		d := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		var below []*inode
		for _, name := range slices.Sorted(maps.Keys(d.children)) {
			child := d.children[name]
			if child.pos < 0 {
				p.place(child)
			}
			if child.is(typeDir) {
				below = append(below, child)
			}
		}
		slices.Reverse(below)
		dirs = append(dirs, below...)
	}
}

// place puts an inode at the end of what is there. What follows an inode within its block must end in it.
func (p *plan) place(i *inode) {
	for _, child := range i.children {
		i.hides = i.hides || child.whiteout
	}
	fixed := inodeSize + i.xattrSize()
	size := fixed
	switch {
	case i.is(typeDir):
		i.size = dirSize(i)
		fallthrough
	case i.is(typeSymlink):
		tail := i.size % BlockSize
		if i.inline = tail > 0 && fixed+tail <= BlockSize; i.inline {
			size += tail
		}
	case i.holes != nil:
		size += 4 * i.chunks()
	}
	if left := BlockSize - p.size%BlockSize; left < inodeSize || left < size && size <= BlockSize {
		p.size += left
	}
	i.pos = p.size
	i.number = uint32(len(p.order) + 1)
	p.order = append(p.order, i)
	p.size = (p.size + size + inodeUnit - 1) &^ (inodeUnit - 1)
}

// outside gives blocks to what does not follow the inode.
func (p *plan) outside(i *inode) {
	if !i.is(typeDir) && !i.is(typeSymlink) {
		return
	}
	if n := i.outer(); n > 0 {
		i.start = p.next
		p.next += n
	}
}

// outer is how many blocks of a directory or link do not follow the inode.
func (i *inode) outer() int64 {
	if i.inline {
		return i.size / BlockSize
	}
	return (i.size + BlockSize - 1) / BlockSize
}

func (i *inode) chunks() int64 {
	return (i.size + 1<<i.chunkBits - 1) >> i.chunkBits
}

// append appends the inode, its attributes and the map of its chunks.
func (i *inode) append(b []byte) []byte {
	layout, union := uint16(layoutRaw), uint32(i.start)
	switch {
	case i.inline:
		layout = layoutInline
	case i.holes != nil:
		layout, union = layoutChunks, uint32(i.chunkBits-blockBits)
	case i.is(typeChar), i.is(typeBlock):
		union = i.rdev
	}
	words := uint16(0)
	if n := i.xattrSize(); n > 0 {
		words = uint16((n-xattrHeader)/4 + 1)
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 1|layout<<1) // 1: extended
	b = le.AppendUint16(b, words)
	b = le.AppendUint16(b, i.mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(i.size))
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, i.number)
	b = le.AppendUint32(b, i.uid)
	b = le.AppendUint32(b, i.gid)
	b = le.AppendUint64(b, uint64(i.mtime))
	b = le.AppendUint32(b, i.nsec)
	b = le.AppendUint32(b, i.nlink)
	b = append(b, make([]byte, 16)...)
	b = i.appendXattrs(b)
	if i.holes != nil {
		b = i.appendChunks(b)
	}
	return b
}

// appendChunks appends the first block of each chunk. The chunks that are there follow one another.
func (i *inode) appendChunks(b []byte) []byte {
	holes, block := i.holes, i.start
	for c := range uint32(i.chunks()) {
		if len(holes) > 0 && c >= holes[0].first {
			b = binary.LittleEndian.AppendUint32(b, nullBlock)
			if c == holes[0].first+holes[0].n-1 {
				holes = holes[1:]
			}
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(block))
		block += 1 << (i.chunkBits - blockBits)
	}
	return b
}

// superblock appends block 0.
func (t *tree) superblock(b []byte, p *plan) []byte {
	b = append(b, make([]byte, BlockSize)...)
	s, le := b[superOffset:], binary.LittleEndian
	le.PutUint32(s[0:], magic)
	le.PutUint32(s[8:], compatSum|compatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(t.root.pos/inodeUnit))
	le.PutUint64(s[16:], uint64(len(p.order)))
	le.PutUint32(s[36:], uint32(p.next))
	le.PutUint32(s[40:], uint32(p.first))
	if t.hasChunks(p) {
		le.PutUint32(s[80:], incompatHole)
	}
	// The kernel's checksum does not invert its result. It covers the rest of the block.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// hasChunks: a file with holes may have been replaced by a later entry.
func (t *tree) hasChunks(p *plan) bool {
	return t.chunked && slices.ContainsFunc(p.order, func(i *inode) bool { return i.holes != nil })
}
