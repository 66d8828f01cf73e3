package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SuperblockSize is the size of what is stored, in bytes; on disk it is padded to a hash block.
const SuperblockSize = 512

var magic = []byte("verity\x00\x00")

// Superblock is version 1 of veritysetup's superblock, which lies before the tree. Nothing in it is authenticated: who attaches a
// device chooses it. Only a root hash that comes with its parameters from a trusted place counts.
type Superblock struct {
	Params
	UUID       [16]byte
	DataBlocks int64
}

// NewSuperblock describes the tree with this root. The UUID is made of the root, so that equal data gives equal bytes; some tools
// refuse a zero one.
func NewSuperblock(p Params, dataBlocks int64, root Root) Superblock {
	s := Superblock{Params: p, DataBlocks: dataBlocks}
	copy(s.UUID[:], root[:])
	s.UUID[6] = s.UUID[6]&0x0f | 0x80 // version 8: made in a way of our own (RFC 9562, 5.8)
	s.UUID[8] = s.UUID[8]&0x3f | 0x80
	return s
}

// Marshal returns the superblock, padded to one hash block.
func (s Superblock) Marshal() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.DataBlocks <= 0 || s.DataBlocks > maxBlocks {
		return nil, fmt.Errorf("verity superblock: %d data blocks", s.DataBlocks)
	}
	b := make([]byte, s.HashBlock)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], 1)  // version
	binary.LittleEndian.PutUint32(b[12:], 1) // hash type
	copy(b[16:], s.UUID[:])
	copy(b[32:64], Algorithm)
	binary.LittleEndian.PutUint32(b[64:], uint32(s.DataBlock))
	binary.LittleEndian.PutUint32(b[68:], uint32(s.HashBlock))
	binary.LittleEndian.PutUint64(b[72:], uint64(s.DataBlocks))
	binary.LittleEndian.PutUint16(b[80:], uint16(len(s.Salt)))
	copy(b[88:], s.Salt)
	return b, nil
}

// ErrNoSuperblock says that there is no superblock where one was looked for.
var ErrNoSuperblock = errors.New("no verity superblock")

// ParseSuperblock reads the first 512 bytes of b. It takes only what this package can check: version 1, hash type 1, SHA-256; and
// nothing in the places that must be zero.
func ParseSuperblock(b []byte) (Superblock, error) {
	var s Superblock
	if len(b) < SuperblockSize {
		return s, fmt.Errorf("verity superblock: %d bytes, want %d", len(b), SuperblockSize)
	}
	b = b[:SuperblockSize]
	if !bytes.Equal(b[:8], magic) {
		return s, ErrNoSuperblock
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != 1 {
		return s, fmt.Errorf("verity superblock: version %d, want 1", v)
	}
	if v := binary.LittleEndian.Uint32(b[12:]); v != 1 {
		return s, fmt.Errorf("verity superblock: hash type %d, want 1", v)
	}
	copy(s.UUID[:], b[16:])
	algorithm := make([]byte, 32)
	copy(algorithm, Algorithm)
	if !bytes.Equal(b[32:64], algorithm) {
		return s, fmt.Errorf("verity superblock: algorithm %q, want %q", bytes.TrimRight(b[32:64], "\x00"), Algorithm)
	}
	dataBlock, hashBlock := binary.LittleEndian.Uint32(b[64:]), binary.LittleEndian.Uint32(b[68:])
	if dataBlock > maxBlock || hashBlock > maxBlock { // before they become an int
		return s, fmt.Errorf("verity superblock: blocks of %d and %d bytes, want at most %d", dataBlock, hashBlock, maxBlock)
	}
	s.DataBlock, s.HashBlock = int(dataBlock), int(hashBlock)
	blocks := binary.LittleEndian.Uint64(b[72:])
	if blocks == 0 || blocks > maxBlocks {
		return s, fmt.Errorf("verity superblock: %d data blocks, want 1 to %d", blocks, int64(maxBlocks))
	}
	s.DataBlocks = int64(blocks)
	salt := int(binary.LittleEndian.Uint16(b[80:]))
	if salt > MaxSalt {
		return s, fmt.Errorf("verity superblock: salt of %d bytes, want at most %d", salt, MaxSalt)
	}
	for _, rest := range [][]byte{b[82:88], b[88+salt:]} {
		if len(bytes.TrimLeft(rest, "\x00")) != 0 {
			return s, errors.New("verity superblock: a place that must be zero is not")
		}
	}
	s.Salt = bytes.Clone(b[88 : 88+salt])
	if err := s.check(); err != nil {
		return s, fmt.Errorf("verity superblock: %w", err)
	}
	return s, nil
}

// ReadSuperblock reads the superblock at an offset in bytes.
func ReadSuperblock(r io.ReaderAt, offset int64) (Superblock, error) {
	b := make([]byte, SuperblockSize)
	if _, err := r.ReadAt(b, offset); err != nil {
		return Superblock{}, fmt.Errorf("reading the verity superblock at %d: %w", offset, err)
	}
	return ParseSuperblock(b)
}
