package verity

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/cloister/cloister/layer/verity/internal/pair"
)

// chunkDigests is how many digests of data blocks one piece of a tree's lowest level holds: 1 MiB of them.
const chunkDigests = 1 << 15

// Tree is a hash tree in the making. Data blocks may come in any order and from several goroutines. It keeps the digests only:
// 1/128 of the data with blocks of 4096 bytes.
type Tree struct {
	p      Params
	paired bool // the processor can hash two blocks at a time

	mu     sync.Mutex
	chunks [][]byte // lowest level, in pieces of chunkDigests
	added  int64    // data blocks

	blocks int64    // of data, once finished
	upper  [][]byte // levels above the lowest
	root   Root
}

// NewTree returns an empty tree.
func NewTree(p Params) (*Tree, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return &Tree{p: p, paired: pair.Available()}, nil
}

// chunk returns the piece of the lowest level with the digest of a data block.
func (t *Tree) chunk(block int64) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := int(block / chunkDigests)
	for len(t.chunks) <= n {
		t.chunks = append(t.chunks, nil)
	}
	if t.chunks[n] == nil {
		t.chunks[n] = make([]byte, chunkDigests*DigestSize)
	}
	return t.chunks[n]
}

// Add hashes whole blocks of data, of which the first has this number. Each block must be added once.
func (t *Tree) Add(first int64, data []byte) error {
	count := int64(len(data) / t.p.DataBlock)
	if len(data)%t.p.DataBlock != 0 || first < 0 || first > maxBlocks-count {
		return fmt.Errorf("verity tree: %d bytes at block %d are not whole blocks of %d bytes", len(data), first, t.p.DataBlock)
	}
	for len(data) > 0 {
		at := first % chunkDigests
		n := min(int64(len(data)/t.p.DataBlock), chunkDigests-at)
		t.digests(t.chunk(first)[at*DigestSize:], data[:n*int64(t.p.DataBlock)], t.p.DataBlock)
		data = data[n*int64(t.p.DataBlock):]
		first += n
	}
	t.mu.Lock()
	t.added += count
	t.mu.Unlock()
	return nil
}

// Finish computes the levels above and the root. So many data blocks must have been added.
func (t *Tree) Finish(blocks int64) (Root, error) {
	if blocks <= 0 || t.added != blocks || int64(len(t.chunks)) != (blocks+chunkDigests-1)/chunkDigests ||
		slices.ContainsFunc(t.chunks, func(c []byte) bool { return c == nil }) {
		return Root{}, fmt.Errorf("verity tree: %d data blocks were added, want %d, and at least one", t.added, blocks)
	}
	if blocks == 1 {
		t.blocks, t.root = blocks, Root(t.chunks[0][:DigestSize])
		return t.root, nil
	}
	levels := t.p.Levels(blocks)
	t.upper = make([][]byte, 0, len(levels))
	below := t.lowest(levels[0])
	for _, n := range levels[1:] {
		level := make([]byte, n*int64(t.p.HashBlock))
		at := 0
		for _, piece := range below {
			t.digests(level[at:], piece, t.p.HashBlock)
			at += len(piece) / t.p.HashBlock * DigestSize
		}
		t.upper = append(t.upper, level)
		below = [][]byte{level}
	}
	var top [DigestSize]byte
	t.digests(top[:], below[0], t.p.HashBlock)
	t.blocks, t.root = blocks, top
	return t.root, nil
}

// lowest returns the lowest level, which has so many hash blocks, in pieces of whole hash blocks.
func (t *Tree) lowest(blocks int64) [][]byte {
	pieces := make([][]byte, 0, len(t.chunks))
	for left := blocks * int64(t.p.HashBlock); left > 0; left -= chunkDigests * DigestSize {
		pieces = append(pieces, t.chunks[len(pieces)][:min(left, chunkDigests*DigestSize)])
	}
	return pieces
}

// WriteAt writes the finished tree at an offset, the top level first, and returns its size in bytes.
func (t *Tree) WriteAt(w io.WriterAt, offset int64) (int64, error) {
	if t.blocks == 0 {
		return 0, errors.New("writing a verity tree: it is not finished")
	}
	var pieces [][]byte
	for i := len(t.upper) - 1; i >= 0; i-- {
		pieces = append(pieces, t.upper[i])
	}
	if levels := t.p.Levels(t.blocks); len(levels) > 0 {
		pieces = append(pieces, t.lowest(levels[0])...)
	}
	var size int64
	for _, piece := range pieces {
		if _, err := w.WriteAt(piece, offset+size); err != nil {
			return size, fmt.Errorf("writing the verity tree: %w", err)
		}
		size += int64(len(piece))
	}
	return size, nil
}

// digests writes the digest of each block of data to dst.
func (t *Tree) digests(dst, data []byte, block int) {
	if t.paired {
		for len(data) >= 2*block {
			pair.Sum(dst, t.p.Salt, data[:block], data[block:2*block])
			dst, data = dst[2*DigestSize:], data[2*block:]
		}
	}
	h := sha256.New()
	for len(data) > 0 {
		h.Reset()
		h.Write(t.p.Salt)
		h.Write(data[:block])
		h.Sum(dst[:0])
		dst, data = dst[DigestSize:], data[block:]
	}
}
