package crypt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "9d532ef160bf996779a49f5cced9178d5af32ec93913c0dfab91fbc5cb65ce3f"

// image is a file with a superblock at an offset.
func image(t *testing.T, offset int64, edit func(b []byte)) (string, int64) {
	t.Helper()
	b := make([]byte, 512)
	copy(b, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], 1)
	copy(b[32:], "sha256")
	le.PutUint32(b[64:], 4096)
	le.PutUint32(b[68:], 4096)
	le.PutUint64(b[72:], uint64(offset/4096))
	le.PutUint16(b[80:], 32)
	copy(b[88:], bytes.Repeat([]byte{7}, 32))
	if edit != nil {
		edit(b)
	}
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteAt(b, offset)
		err = errors.Join(err, f.Truncate(offset*2+1<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path, offset*2 + 1<<20
}

func TestSuperblock(t *testing.T) {
	v := Verity{Root: root, HashOffset: 8192, BlockSize: 4096, HashSize: 4096}
	path, size := image(t, 8192, nil)
	if err := v.check(size); err != nil {
		t.Fatal(err)
	}
	salt, err := v.readSalt(path)
	if err != nil || !bytes.Equal(salt, bytes.Repeat([]byte{7}, 32)) {
		t.Fatalf("got %x, %v", salt, err)
	}
	v.Salt = salt
	want := "1 /dev/vda1 /dev/vda1 4096 4096 2 3 sha256 " + root + " " + strings.Repeat("07", 32)
	if got := string(v.table("/dev/vda1")); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	v.Salt, v.HasSalt = make([]byte, 32), true
	if _, err := v.readSalt(path); !errors.Is(err, ErrVerity) {
		t.Errorf("another salt: %v", err)
	}
	v.HasSalt = false
	for name, edit := range map[string]func([]byte){
		"signature": func(b []byte) { b[0] = 0 }, "version": func(b []byte) { b[8] = 2 }, "type": func(b []byte) { b[12] = 0 },
		"algorithm": func(b []byte) { copy(b[32:], "sha512") }, "block size": func(b []byte) { b[65] = 2 }, "hash size": func(b []byte) { b[69] = 2 },
		"blocks": func(b []byte) { b[72] = 1 }, "many blocks": func(b []byte) { b[79] = 0x80 }, "salt": func(b []byte) { b[81] = 0xff },
	} {
		path, _ := image(t, 8192, edit)
		if _, err := v.readSalt(path); !errors.Is(err, ErrVerity) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerityGeometry(t *testing.T) {
	for _, c := range []struct {
		v           Verity
		start, tree int64
	}{
		{Verity{HashOffset: 4096, BlockSize: 4096, HashSize: 4096}, 2, 0}, // one block needs no tree
		{Verity{HashOffset: 2 * 4096, BlockSize: 4096, HashSize: 4096}, 3, 1},
		{Verity{HashOffset: 128 * 4096, BlockSize: 4096, HashSize: 4096}, 129, 1},
		{Verity{HashOffset: 129 * 4096, BlockSize: 4096, HashSize: 4096, NoSuperblock: true}, 129, 3},
		{Verity{HashOffset: 128 * 128 * 4096, BlockSize: 4096, HashSize: 4096}, 128*128 + 1, 129},
		{Verity{HashOffset: 17 * 512, BlockSize: 512, HashSize: 512}, 18, 3},
	} {
		c.v.Root = root
		if got := c.v.hashStart(); got != c.start {
			t.Errorf("%+v: the tree starts at %d, expected %d", c.v, got, c.start)
		}
		if got := c.v.treeBlocks(); got != c.tree {
			t.Errorf("%+v: the tree has %d blocks, expected %d", c.v, got, c.tree)
		}
		end := (c.start + c.tree) * int64(c.v.HashSize)
		if err := errors.Join(c.v.check(end), c.v.check(1<<62)); err != nil {
			t.Errorf("%+v: %v", c.v, err)
		}
		if err := c.v.check(end - 1); c.tree > 0 && !errors.Is(err, ErrVerity) {
			t.Errorf("%+v: a disk that is too small: %v", c.v, err)
		}
	}
	good := Verity{Root: root, HashOffset: 8192, BlockSize: 4096, HashSize: 4096}
	for name, edit := range map[string]func(*Verity){
		"no root": func(v *Verity) { v.Root = "" }, "short root": func(v *Verity) { v.Root = root[2:] }, "upper case": func(v *Verity) { v.Root = strings.ToUpper(root) },
		"injection": func(v *Verity) { v.Root = root[:62] + " 0" }, "offset 0": func(v *Verity) { v.HashOffset = 0 }, "negative": func(v *Verity) { v.HashOffset = -4096 },
		"odd offset": func(v *Verity) { v.HashOffset = 8191 }, "beyond": func(v *Verity) { v.HashOffset = 1 << 62 }, "block 0": func(v *Verity) { v.BlockSize = 0 },
		"block 3000": func(v *Verity) { v.BlockSize = 3000 }, "hash 256": func(v *Verity) { v.HashSize = 256 }, "salt": func(v *Verity) { v.Salt = make([]byte, 257) },
	} {
		v := good
		edit(&v)
		if err := v.check(1 << 40); !errors.Is(err, ErrVerity) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
