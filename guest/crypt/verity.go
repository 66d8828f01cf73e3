package crypt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrVerity means that what the host attached, or says about it, does not fit together.
var ErrVerity = errors.New("not a dm-verity device as described")

// Verity describes data with a tree of SHA-256 hashes after it. Root alone decides what can be read: all other numbers may come from
// the host, and with wrong ones nothing that is read fits the root.
type Verity struct {
	Root       string // 64 lower-case hex characters
	HashOffset int64  // bytes of data; the superblock follows it, or the tree
	BlockSize  int    // of data, bytes: 512 to 4096
	HashSize   int    // of a block of the tree, bytes: 512 to 4096
	// NoSuperblock: there is none, and Salt is used as it is. With a superblock, that must agree with all numbers here and its salt is
	// used, which must be this one if HasSalt.
	NoSuperblock bool
	Salt         []byte
	HasSalt      bool
}

// VerityModules are the kernel modules that OpenVerity needs.
func VerityModules() []string { return []string{"dm_mod", "dm_verity", "sha256_ssse3"} }

const (
	superblockSize = 512
	digestSize     = 32
	maxSalt        = 256
)

// OpenVerity makes a read-only device of the data behind node, which has size bytes with the tree. Each block is compared with the tree
// when it is read; one that differs gives EIO. name is that of the device and must be free.
func OpenVerity(name, node string, size int64, v Verity) (_ *Disk, err error) {
	fail := func(err error) (*Disk, error) { return nil, fmt.Errorf("verifying %s: %w", node, err) }
	if err := v.check(size); err != nil {
		return fail(err)
	}
	if !v.NoSuperblock {
		if v.Salt, err = v.readSalt(node); err != nil {
			return fail(err)
		}
	}
	m, err := openMapper()
	if err != nil {
		return fail(err)
	}
	defer m.Close()
	d := &Disk{Size: v.HashOffset, Salt: v.Salt}
	d.Node, err = m.create(name, target{kind: "verity", sectors: uint64(v.HashOffset / sector), params: v.table(node), readOnly: true})
	if err != nil {
		return fail(err)
	}
	d.names = []string{name}
	return d, nil
}

// SealedModules are the kernel modules that Decrypt needs.
func SealedModules() []string { return []string{"dm_crypt", "xts", "aesni_intel"} }

// Decrypt puts a read-only layer of decryption on a verified disk: AES-256-XTS with a key of 64 bytes, in sectors of 4096 bytes. name is
// that of the device and must be free.
func (d *Disk) Decrypt(name string, key []byte) error {
	if len(key) != xtsKey {
		return fmt.Errorf("decrypting %s: a key of %d bytes", d.Node, len(key))
	}
	m, err := openMapper()
	if err != nil {
		return err
	}
	defer m.Close()
	params := hex.AppendEncode(append(make([]byte, 0, 512), "aes-xts-plain64 "...), key)
	params = fmt.Appendf(params, " 0 %s 0 2 sector_size:%d iv_large_sectors", d.Node, blockSize)
	defer clear(params)
	node, err := m.create(name, target{kind: "crypt", sectors: uint64(d.Size / sector), params: params, readOnly: true})
	if err != nil {
		return fmt.Errorf("decrypting %s: %w", d.Node, err)
	}
	d.Node, d.names = node, append(d.names, name)
	return nil
}

// check looks at the numbers before anything is read.
func (v *Verity) check(size int64) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrVerity, fmt.Sprintf(format, args...))
	}
	ok := func(n int) bool { return n >= 512 && n <= 4096 && n&(n-1) == 0 }
	raw, err := hex.DecodeString(v.Root)
	switch {
	case err != nil || len(raw) != digestSize || strings.ToLower(v.Root) != v.Root:
		return bad("root hash %.80q: expected 64 lower-case hex characters", v.Root)
	case !ok(v.BlockSize) || !ok(v.HashSize):
		return bad("blocks of %d and %d bytes: expected 512, 1024, 2048 or 4096", v.BlockSize, v.HashSize)
	case v.HashOffset <= 0 || v.HashOffset%int64(max(v.BlockSize, v.HashSize)) != 0:
		return bad("hash offset %d: expected a multiple of the block size", v.HashOffset)
	case len(v.Salt) > maxSalt:
		return bad("%d bytes of salt", len(v.Salt))
	case v.HashOffset > size:
		return bad("hash offset %d, but there are %d bytes", v.HashOffset, size)
	}
	if end := (v.hashStart() + v.treeBlocks()) * int64(v.HashSize); end > size {
		return bad("data and hashes end at byte %d, but there are %d bytes", end, size)
	}
	return nil
}

// hashStart is the first block of the tree.
func (v *Verity) hashStart() int64 {
	start := v.HashOffset / int64(v.HashSize)
	if !v.NoSuperblock {
		start++ // the superblock, padded to a block
	}
	return start
}

// treeBlocks is the size of the tree in blocks.
func (v *Verity) treeBlocks() int64 {
	per, all := int64(v.HashSize/digestSize), int64(0)
	for n := v.HashOffset / int64(v.BlockSize); n > 1; {
		n = (n + per - 1) / per
		all += n
	}
	return all
}

// readSalt reads the superblock. It is the host's, so that it must say what v says; what is new in it is the salt, without which no
// hash fits.
func (v *Verity) readSalt(node string) ([]byte, error) {
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	defer f.Close()
	var b [superblockSize]byte
	if _, err := f.ReadAt(b[:], v.HashOffset); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	le := binary.LittleEndian
	want := make([]byte, 80)
	copy(want, "verity\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00") // version 1, hash type 1
	copy(want[16:], b[16:32])                                    // any UUID
	copy(want[32:], "sha256")
	le.PutUint32(want[64:], uint32(v.BlockSize))
	le.PutUint32(want[68:], uint32(v.HashSize))
	le.PutUint64(want[72:], uint64(v.HashOffset/int64(v.BlockSize)))
	for i := range want {
		if want[i] != b[i] {
			return nil, fmt.Errorf("%w: byte %d of the superblock at %d is %#x, expected %#x", ErrVerity, i, v.HashOffset, b[i], want[i])
		}
	}
	salt := b[88:]
	if n := int(le.Uint16(b[80:])); n <= maxSalt {
		salt = salt[:n]
	}
	if len(salt) > maxSalt || v.HasSalt && !bytes.Equal(salt, v.Salt) {
		return nil, fmt.Errorf("%w: the salt in the superblock at %d is another one", ErrVerity, v.HashOffset)
	}
	return bytes.Clone(salt), nil
}

// table is the kernel's description of the device.
func (v *Verity) table(node string) []byte {
	salt := "-"
	if len(v.Salt) > 0 {
		salt = hex.EncodeToString(v.Salt)
	}
	return fmt.Appendf(nil, "1 %s %s %d %d %d %d sha256 %s %s", node, node, v.BlockSize, v.HashSize,
		v.HashOffset/int64(v.BlockSize), v.hashStart(), v.Root, salt)
}
