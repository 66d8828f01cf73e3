package runtimeconfig

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Verity is the hash tree of a guest image: the values of dm-verity version 1 with SHA-256 (kernel documentation, admin-guide,
// device-mapper/verity).
type Verity struct {
	// RootHash is 64 digits in hexadecimal, Salt up to 512, or "-" for none.
	RootHash, Salt string
	// DataBlocks counts the blocks of the file system; the sizes are bytes.
	DataBlocks, DataBlockSize, HashBlockSize int64
}

// sector is the unit of the device mapper, in bytes.
const sector = 512

// Sectors is the size of the file system in units of 512 bytes.
func (v Verity) Sectors() int64 { return v.DataBlocks * (v.DataBlockSize / sector) }

// ParseVerity reads the form in which Kata Containers writes the parameters:
// root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…. All five are needed, each once, in any order.
func ParseVerity(text string) (Verity, error) {
	var v Verity
	number := func(to *int64) func(string) error {
		return func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < 1 {
				return errors.New("want a number above 0")
			}
			*to = n
			return nil
		}
	}
	fields := map[string]func(string) error{
		"root_hash": func(s string) error {
			if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
				return errors.New("want 64 digits in hexadecimal")
			}
			v.RootHash = s
			return nil
		},
		"salt": func(s string) error {
			if b, err := hex.DecodeString(s); s != "-" && (err != nil || len(b) < 1 || len(b) > 256) {
				return errors.New(`want 2 to 512 digits in hexadecimal, or "-"`)
			}
			v.Salt = s
			return nil
		},
		"data_blocks": number(&v.DataBlocks), "data_block_size": number(&v.DataBlockSize), "hash_block_size": number(&v.HashBlockSize),
	}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		set, known := fields[name]
		if !ok || !known {
			return Verity{}, fmt.Errorf("%s: want root_hash, salt, data_blocks, data_block_size and hash_block_size, each once", show(part))
		}
		if err := set(value); err != nil {
			return Verity{}, fmt.Errorf("%s is %s: %w", name, show(value), err)
		}
		delete(fields, name)
	}
	if len(fields) > 0 {
		return Verity{}, errors.New("want root_hash, salt, data_blocks, data_block_size and hash_block_size, each once")
	}
	for name, size := range map[string]int64{"data_block_size": v.DataBlockSize, "hash_block_size": v.HashBlockSize} {
		if size < sector || size > 64<<10 || size&(size-1) != 0 {
			return Verity{}, fmt.Errorf("%s is %d, want a power of two from 512 to 65536", name, size)
		}
	}
	if v.DataBlocks > math.MaxInt64/(64<<10) {
		return Verity{}, fmt.Errorf("data_blocks is %d, which is more than any disk has", v.DataBlocks)
	}
	return v, nil
}
