// Package ext4 makes empty ext4 file systems. It writes only the blocks that the kernel reads before it has written them
// itself: the superblock, the group descriptors, the bitmaps of the first and the last group and the first inodes. All
// other tables are marked as uninitialised, so that a disk of any size is ready at once, and a disk below that refuses to
// give blocks nobody has written (authenticated encryption) is never asked for one.
//
// There is no journal, no copy of the superblock and no block reserved for root: the file systems live as long as a pod.
// The layout is that of the kernel's Documentation/filesystems/ext4.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// BlockSize is that of every file system made here.
	BlockSize = 4096
	// MinSize and MaxSize bound file systems, in bytes.
	MinSize = 1 << 20
	MaxSize = 15 << 40

	inodeSize      = 256
	inodesPerBlock = BlockSize / inodeSize
	blocksPerGroup = 8 * BlockSize
	descSize       = 32
	firstInode     = 11 // of the directory lost+found
	rootInode      = 2
	// tailMin is the smallest last group that is worth having, beside its tables.
	tailMin = 64
)

// ErrSize means that a disk is too small or too large.
var ErrSize = errors.New("size out of range")

// layout is where things are.
type layout struct {
	blocks     int64
	groups     int64
	perGroup   int64 // inodes
	descBlocks int64
}

func plan(size int64) (layout, error) {
	if size < MinSize || size > MaxSize {
		return layout{}, fmt.Errorf("ext4 on %d bytes: %w: expected %d to %d", size, ErrSize, int64(MinSize), int64(MaxSize))
	}
	l := layout{blocks: size / BlockSize}
	l.groups = (l.blocks + blocksPerGroup - 1) / blocksPerGroup
	perInode := int64(16 << 10)
	if size > 16<<30 {
		perInode = 64 << 10
	}
	l.perGroup = (size/perInode + l.groups - 1) / l.groups
	l.perGroup = (l.perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
	if tail := l.blocks % blocksPerGroup; l.groups > 1 && tail != 0 && tail < 2+l.tableBlocks()+tailMin {
		l.blocks -= tail
		l.groups--
	}
	l.descBlocks = (l.groups*descSize + BlockSize - 1) / BlockSize
	return l, nil
}

func (l layout) tableBlocks() int64 { return l.perGroup / inodesPerBlock }

// size is the number of blocks of a group.
func (l layout) size(group int64) int64 { return min(blocksPerGroup, l.blocks-group*blocksPerGroup) }

// bitmap is the block of a group's block bitmap; the inode bitmap and the inode table follow it.
func (l layout) bitmap(group int64) int64 {
	if group == 0 {
		return 1 + l.descBlocks
	}
	return group * blocksPerGroup
}

// data is the first block of a group that belongs to no table.
func (l layout) data(group int64) int64 { return l.bitmap(group) + 2 + l.tableBlocks() }

// used is how many blocks of a group are taken.
func (l layout) used(group int64) int64 {
	n := l.data(group) - group*blocksPerGroup
	if group == 0 {
		n += 2 // the two directories
	}
	return n
}

// Format makes a file system in the first size bytes of w. The result depends on the arguments only. Nothing of what was
// there can be reached through it, but it is not overwritten.
func Format(w io.WriterAt, size int64, uuid [16]byte, now time.Time) error {
	l, err := plan(size)
	if err != nil {
		return err
	}
	put := func(block int64, data []byte) {
		if err == nil {
			_, err = w.WriteAt(data, block*BlockSize)
		}
	}
	// The superblock last: half a file system is none.
	put(0, make([]byte, BlockSize))
	put(1, l.descriptors(uuid))
	for _, g := range []int64{0, l.groups - 1} {
		put(l.bitmap(g), l.blockBitmap(g))
	}
	put(l.bitmap(0)+1, l.inodeBitmap())
	root, lost := l.data(0), l.data(0)+1
	put(l.bitmap(0)+2, inodes(uint32(root), uint32(lost), uint32(now.Unix())))
	put(root, directory(rootInode, rootInode, "lost+found", firstInode))
	put(lost, directory(firstInode, rootInode, "", 0))
	put(0, l.superblock(uuid, uint32(now.Unix())))
	if err != nil {
		return fmt.Errorf("making an ext4 file system: %w", err)
	}
	return nil
}

var le = binary.LittleEndian

// Flags of a group.
const (
	inodeUninit = 1
	blockUninit = 2
)

func (l layout) descriptors(uuid [16]byte) []byte {
	out := make([]byte, l.descBlocks*BlockSize)
	for g := range l.groups {
		d := out[g*descSize:][:descSize]
		le.PutUint32(d[0:], uint32(l.bitmap(g)))
		le.PutUint32(d[4:], uint32(l.bitmap(g)+1))
		le.PutUint32(d[8:], uint32(l.bitmap(g)+2))
		le.PutUint16(d[12:], uint16(l.size(g)-l.used(g)))
		free, flags := l.perGroup, uint16(inodeUninit|blockUninit)
		if g == 0 {
			free, flags = l.perGroup-firstInode, 0
			le.PutUint16(d[16:], 2) // directories
		} else if g == l.groups-1 {
			flags = inodeUninit
		}
		le.PutUint16(d[14:], uint16(free))
		le.PutUint16(d[18:], flags)
		le.PutUint16(d[28:], uint16(free)) // inodes at the end of the table that were never used
		sum := crc16(0xffff, uuid[:])
		sum = crc16(sum, le.AppendUint32(nil, uint32(g)))
		le.PutUint16(d[30:], crc16(sum, d[:30]))
	}
	return out
}

// crc16 continues the checksum of group descriptors: polynomial 0x8005, bits reversed.
func crc16(sum uint16, data []byte) uint16 {
	for _, b := range data {
		sum ^= uint16(b)
		for range 8 {
			low := sum & 1
			sum >>= 1
			if low != 0 {
				sum ^= 0xa001
			}
		}
	}
	return sum
}

func setBits(m []byte, from, to int64) {
	for i := from; i < to; i++ {
		m[i/8] |= 1 << (i % 8)
	}
}

func (l layout) blockBitmap(group int64) []byte {
	m := make([]byte, BlockSize)
	setBits(m, 0, l.used(group))
	setBits(m, l.size(group), blocksPerGroup)
	return m
}

func (l layout) inodeBitmap() []byte {
	m := make([]byte, BlockSize)
	setBits(m, 0, firstInode)
	setBits(m, l.perGroup, 8*BlockSize)
	return m
}

// inodes is the first block of the inode table: the root directory and lost+found, each with one block.
func inodes(root, lost, now uint32) []byte {
	out := make([]byte, BlockSize)
	for _, n := range []struct {
		number, block uint32
		mode, links   uint16
	}{{rootInode, root, 0o40755, 3}, {firstInode, lost, 0o40700, 2}} {
		const usesExtents, extentMagic, maxExtents, sectors = 0x80000, 0xf30a, 4, BlockSize / 512
		i := out[(n.number-1)*inodeSize:][:inodeSize]
		le.PutUint16(i[0x00:], n.mode)
		le.PutUint32(i[0x04:], BlockSize)
		for _, at := range []int{0x08, 0x0c, 0x10, 0x90} { // access, change, modification, creation
			le.PutUint32(i[at:], now)
		}
		le.PutUint16(i[0x1a:], n.links)
		le.PutUint32(i[0x1c:], sectors)
		le.PutUint32(i[0x20:], usesExtents)
		le.PutUint16(i[0x28:], extentMagic)
		le.PutUint16(i[0x2a:], 1)
		le.PutUint16(i[0x2c:], maxExtents)
		le.PutUint16(i[0x38:], 1) // blocks
		le.PutUint32(i[0x3c:], n.block)
		le.PutUint16(i[0x80:], 32) // of the inode beyond the first 128 bytes
	}
	return out
}

// directory is the block of a directory with one entry or none.
func directory(self, parent uint32, name string, child uint32) []byte {
	out := make([]byte, BlockSize)
	at := 0
	entry := func(inode uint32, name string, last bool) {
		length := (8 + len(name) + 3) / 4 * 4
		if last {
			length = BlockSize - at
		}
		const isDirectory = 2
		le.PutUint32(out[at:], inode)
		le.PutUint16(out[at+4:], uint16(length))
		out[at+6], out[at+7] = byte(len(name)), isDirectory
		copy(out[at+8:], name)
		at += length
	}
	entry(self, ".", false)
	entry(parent, "..", name == "")
	if name != "" {
		entry(child, name, true)
	}
	return out
}

func (l layout) superblock(uuid [16]byte, now uint32) []byte {
	free := l.blocks
	for g := range l.groups {
		free -= l.used(g)
	}
	block := make([]byte, BlockSize)
	s := block[1024:]
	put32 := func(at int, v int64) { le.PutUint32(s[at:], uint32(v)) }
	put16 := func(at int, v uint16) { le.PutUint16(s[at:], v) }
	put32(0x00, l.groups*l.perGroup)
	put32(0x04, l.blocks)
	put32(0x0c, free)
	put32(0x10, l.groups*l.perGroup-firstInode)
	put32(0x18, 2) // block size: 1024 << 2
	put32(0x1c, 2)
	put32(0x20, blocksPerGroup)
	put32(0x24, blocksPerGroup)
	put32(0x28, l.perGroup)
	put32(0x30, int64(now))
	put16(0x36, 0xffff) // no limit of mounts
	put16(0x38, 0xef53)
	put16(0x3a, 1) // clean
	put16(0x3c, 2) // read-only after an error
	put32(0x40, int64(now))
	put32(0x4c, 1) // revision
	put32(0x54, firstInode)
	put16(0x58, inodeSize)
	put32(0x5c, 0x8|0x20|0x200)         // extended attributes, hashed directories, chosen superblock copies (none)
	put32(0x60, 0x2|0x40)               // file types in directories, extents
	put32(0x64, 0x2|0x8|0x10|0x20|0x40) // large and huge files, descriptor checksums, many links, large inodes
	copy(s[0x68:], uuid[:])
	copy(s[0xec:], uuid[:]) // seed of directory hashes
	s[0xfc] = 1             // half MD4
	put32(0x108, int64(now))
	put16(0x15c, 32)
	put16(0x15e, 32)
	put32(0x160, 2) // unsigned hashes
	return block
}
