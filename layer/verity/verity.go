// Package verity makes and checks dm-verity hash trees (SHA-256, hash type 1) and their superblocks, as the kernel and
// veritysetup know them (kernel documentation, admin-guide/device-mapper/verity; cryptsetup wiki, DMVerity). It is linked into
// the guest, so it needs the standard library only.
package verity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	// DigestSize is the size of a digest in the tree, in bytes.
	DigestSize = sha256.Size
	// MaxSalt is how long a salt may be, in bytes.
	MaxSalt = 256
	// Algorithm is the kernel's name of the only hash used.
	Algorithm = "sha256"

	minBlock  = 512
	maxBlock  = 4096
	maxBlocks = 1 << 40 // of data; far above what fits anywhere, far below any overflow
)

// Root is the digest of the top of a tree. It stands for every byte of the data.
type Root [DigestSize]byte

// ParseRoot reads 64 hexadecimal characters.
func ParseRoot(text string) (Root, error) {
	var root Root
	if len(text) != 2*DigestSize {
		return root, fmt.Errorf("verity root hash has %d characters, want %d hexadecimal ones", len(text), 2*DigestSize)
	}
	if _, err := hex.Decode(root[:], []byte(text)); err != nil {
		return root, fmt.Errorf("verity root hash: %w", err)
	}
	return root, nil
}

func (r Root) String() string { return hex.EncodeToString(r[:]) }

// Params say how a tree is made. Sizes are in bytes.
type Params struct {
	DataBlock int    // power of two, 512 to 4096
	HashBlock int    // power of two, 512 to 4096
	Salt      []byte // hashed before each block; at most MaxSalt
}

// Default returns the parameters that container tools share: blocks of 4096 bytes and a salt of 32 zero bytes.
func Default() Params {
	return Params{DataBlock: 4096, HashBlock: 4096, Salt: make([]byte, 32)}
}

func (p Params) check() error {
	for what, n := range map[string]int{"data": p.DataBlock, "hash": p.HashBlock} {
		if n < minBlock || n > maxBlock || n&(n-1) != 0 {
			return fmt.Errorf("verity %s block size %d: want a power of two from %d to %d", what, n, minBlock, maxBlock)
		}
	}
	if len(p.Salt) > MaxSalt {
		return fmt.Errorf("verity salt has %d bytes, want at most %d", len(p.Salt), MaxSalt)
	}
	return nil
}

// Levels returns the number of hash blocks of each level of the tree over so many data blocks, the lowest first. One data block
// needs none: its digest is the root.
func (p Params) Levels(dataBlocks int64) []int64 {
	per := int64(p.HashBlock / DigestSize)
	var levels []int64
	for n := dataBlocks; n > 1; {
		n = (n + per - 1) / per
		levels = append(levels, n)
	}
	return levels
}

// TreeSize returns the size of the tree over so many data blocks in bytes, without superblock.
func (p Params) TreeSize(dataBlocks int64) int64 {
	var blocks int64
	for _, n := range p.Levels(dataBlocks) {
		blocks += n
	}
	return blocks * int64(p.HashBlock)
}

// Table is what the kernel needs to know of a verity device.
type Table struct {
	Params
	DataDevice string // path or major:minor
	HashDevice string // the same device when the tree follows the data
	DataBlocks int64
	HashStart  int64 // first block of the tree, in hash blocks from the start of the hash device
	Root       Root
	Options    []string // e.g. "panic_on_corruption"; each word counts
}

// HashStart returns the first hash block of a tree whose hash area begins at an offset in bytes, with or without superblock.
func (p Params) HashStart(hashOffset int64, superblock bool) (int64, error) {
	if err := p.check(); err != nil {
		return 0, err
	}
	if hashOffset < 0 || hashOffset%int64(p.HashBlock) != 0 {
		return 0, fmt.Errorf("verity hash offset %d is not a multiple of the hash block size %d", hashOffset, p.HashBlock)
	}
	start := hashOffset / int64(p.HashBlock)
	if superblock {
		start++ // 512 bytes, padded to a block
	}
	return start, nil
}

// Sectors returns the length of the verity device in sectors of 512 bytes.
func (t Table) Sectors() int64 { return t.DataBlocks * int64(t.DataBlock) / 512 }

// Line returns the arguments of the kernel's target "verity": what follows `0 SECTORS verity` in a device-mapper table.
func (t Table) Line() (string, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	if t.DataBlocks <= 0 || t.DataBlocks > maxBlocks || t.HashStart < 0 {
		return "", fmt.Errorf("verity table: %d data blocks and hash start %d cannot be", t.DataBlocks, t.HashStart)
	}
	for _, word := range append([]string{t.DataDevice, t.HashDevice}, t.Options...) {
		if word == "" || strings.ContainsAny(word, " \t\n\\\x00") {
			return "", fmt.Errorf("verity table: %q is not one word", word)
		}
	}
	salt := "-"
	if len(t.Salt) > 0 {
		salt = hex.EncodeToString(t.Salt)
	}
	line := fmt.Sprintf("1 %s %s %d %d %d %d %s %s %s", t.DataDevice, t.HashDevice, t.DataBlock, t.HashBlock, t.DataBlocks,
		t.HashStart, Algorithm, t.Root, salt)
	if len(t.Options) > 0 {
		line += fmt.Sprintf(" %d %s", len(t.Options), strings.Join(t.Options, " "))
	}
	return line, nil
}
