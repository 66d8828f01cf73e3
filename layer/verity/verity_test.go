package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// pattern is the data of the golden vectors: byte i is i mod 251.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// file is a writer and reader in memory.
type file struct{ b []byte }

func (f *file) WriteAt(b []byte, at int64) (int, error) {
	if need := int(at) + len(b); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[at:], b), nil
}

func (f *file) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(f.b).ReadAt(b, at) }

// TestGolden compares with what veritysetup 2.6.1 made.
func TestGolden(t *testing.T) {
	zero := make([]byte, 32)
	for _, c := range []struct {
		size, block int
		salt        []byte
		root        string
		area        int64 // with superblock
	}{
		{1048576, 4096, zero, "f7a2c03353a573af9c62e51838050ae1057f7bf1a92f43510e6c0599ff483866", 16384},
		{1048576, 512, zero, "de167f3738d531e02f25062b8a6f62007c1ca1ee19677b2011d955271046a84a", 70656},
		{532480, 4096, zero, "3ec022c5544ccc1963fe042c53ea37f3c5362711d8ab3257254ed7eefca7cdd9", 16384},
		{532480, 512, zero, "757e628774541daf7015d2b23d9354acd5ec3a9fd7d6ed19b3863b61964ae220", 36864},
		{4096, 4096, zero, "49acba383b2e1a917659615e96cecbc4afe69108c40eab43da0e4f9dd953ecd2", 4096},
		{4096, 512, zero, "7d65bf19129e2bd6a3597fdfcf2a423885171b17359d6ff52dba9f297a52ef66", 1024},
		{1048576, 4096, nil, "2741efefc98f2dbd797ca3c2b25241acaed1b3d21bf0ee20b633fe4a5051f20c", 16384},
		{1048576, 4096, []byte{0xaa, 0xbb}, "cfcd262beb1f0fb484d69bf191ec7f22ca3af059877b7d85d26ca3075b1a831c", 16384},
	} {
		t.Run(fmt.Sprintf("%d-%d-%x", c.size, c.block, c.salt), func(t *testing.T) {
			p := Params{DataBlock: c.block, HashBlock: c.block, Salt: c.salt}
			tree, root, err := Hash(t.Context(), p, bytes.NewReader(pattern(c.size)), int64(c.size), 3)
			if err != nil {
				t.Fatal(err)
			}
			if root.String() != c.root {
				t.Errorf("root %s, want %s", root, c.root)
			}
			n, err := tree.WriteAt(&file{}, 0)
			if err != nil || n+int64(c.block) != c.area || p.TreeSize(int64(c.size/c.block)) != n {
				t.Errorf("tree of %d bytes, calculated %d (%v), want %d", n, p.TreeSize(int64(c.size/c.block)), err, c.area-int64(c.block))
			}
		})
	}
}

// TestOrderOfBlocks adds blocks backwards, in unequal pieces, across a piece of the lowest level.
func TestOrderOfBlocks(t *testing.T) {
	p := Params{DataBlock: 512, HashBlock: 1024, Salt: []byte{1}}
	data := pattern(512 * (chunkDigests + 777))
	_, want, err := Hash(t.Context(), p, bytes.NewReader(data), int64(len(data)), 2)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := NewTree(p)
	if err != nil {
		t.Fatal(err)
	}
	for end, step := len(data)/512, 1; end > 0; step += 97 {
		begin := max(0, end-step)
		if err := tree.Add(int64(begin), data[begin*512:end*512]); err != nil {
			t.Fatal(err)
		}
		end = begin
	}
	if got, err := tree.Finish(int64(len(data) / 512)); err != nil || got != want {
		t.Errorf("root %s (%v), want %s", got, err, want)
	}
	if _, err := tree.Finish(3); err == nil {
		t.Error("a tree with the wrong number of blocks was finished")
	}
	if err := tree.Add(0, data[:100]); err == nil {
		t.Error("part of a block was taken")
	}
	if tree, err = NewTree(p); err != nil {
		t.Fatal(err)
	}
	for _, first := range []int64{0, 2*chunkDigests + 1} { // nothing of the second piece
		if err := tree.Add(first, make([]byte, 512*chunkDigests)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tree.Finish(2 * chunkDigests); err == nil {
		t.Error("a tree with a gap was finished")
	}
}

// TestLastBlockIsFilled: data that ends within a block counts as if zeros followed.
func TestLastBlockIsFilled(t *testing.T) {
	data := pattern(10000)
	_, a, err := Hash(t.Context(), Default(), bytes.NewReader(data), 10000, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, b, err := Hash(t.Context(), Default(), bytes.NewReader(append(data, make([]byte, 2288)...)), 12288, 1)
	if err != nil || a != b {
		t.Errorf("%s and %s (%v)", a, b, err)
	}
	if _, _, err := Hash(t.Context(), Default(), bytes.NewReader(data), 10001, 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("data that is shorter than said: %v", err)
	}
}

// whole returns data, superblock and tree in one file.
func whole(t *testing.T, p Params, data []byte) (*file, int64, Root) {
	t.Helper()
	tree, root, err := Hash(t.Context(), p, bytes.NewReader(data), int64(len(data)), 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &file{b: bytes.Clone(data)}
	block := int64(p.HashBlock)
	offset := (int64(len(data)) + block - 1) / block * block
	sb, err := NewSuperblock(p, int64(len(data)/p.DataBlock), root).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(sb, offset)
	if _, err := tree.WriteAt(f, offset+block); err != nil {
		t.Fatal(err)
	}
	return f, offset, root
}

func TestCheckFindsEveryFlippedBit(t *testing.T) {
	f, offset, root := whole(t, Default(), pattern(130*4096))
	if s, err := Check(t.Context(), f, offset, root, 0); err != nil || s.DataBlocks != 130 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, at := range []int64{0, 4095, offset - 1, offset + 4096, offset + 4096 + 64, offset + 2*4096 + 4096, int64(len(f.b)) - 1} {
		f.b[at] ^= 4
		if _, err := Check(t.Context(), f, offset, root, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("flipped bit at %d of %d: %v", at, len(f.b), err)
		}
		f.b[at] ^= 4
	}
	if _, err := Check(t.Context(), f, offset, Root{}, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another root: %v", err)
	}
	if _, err := Check(t.Context(), f, offset-4096, root, 0); !errors.Is(err, ErrNoSuperblock) {
		t.Errorf("another offset: %v", err)
	}
	if _, err := Check(t.Context(), &file{b: f.b[:len(f.b)-1]}, offset, root, 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a tree cut short: %v", err)
	}
}

func TestSuperblockIsStrict(t *testing.T) {
	good, err := Superblock{Params: Params{512, 1024, []byte{9, 8}}, UUID: [16]byte{1}, DataBlocks: 7}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSuperblock(good)
	if err != nil || s.DataBlock != 512 || s.HashBlock != 1024 || !bytes.Equal(s.Salt, []byte{9, 8}) || s.DataBlocks != 7 || s.UUID[0] != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, change := range map[string]func(b []byte){
		"signature":          func(b []byte) { b[0] = 'V' },
		"version":            func(b []byte) { b[8] = 2 },
		"hash type 0":        func(b []byte) { b[12] = 0 },
		"algorithm":          func(b []byte) { copy(b[32:], "sha512") },
		"text after the NUL": func(b []byte) { b[60] = 'x' },
		"no power of two":    func(b []byte) { b[65] = 3 },
		"huge block":         func(b []byte) { b[67] = 0x80 },
		"tiny block":         func(b []byte) { b[65], b[64] = 0, 16 },
		"no blocks":          func(b []byte) { b[72] = 0 },
		"too many blocks":    func(b []byte) { b[79] = 0x80 },
		"long salt":          func(b []byte) { b[81] = 2 },
		"gap":                func(b []byte) { b[83] = 1 },
		"after the salt":     func(b []byte) { b[90] = 1 },
		"the end":            func(b []byte) { b[511] = 1 },
	} {
		b := bytes.Clone(good)
		change(b)
		if s, err := ParseSuperblock(b); err == nil {
			t.Errorf("%s: taken as %+v", name, s)
		}
	}
	if _, err := ParseSuperblock(good[:511]); err == nil {
		t.Error("511 bytes were taken")
	}
}

func FuzzParseSuperblock(f *testing.F) {
	b, err := NewSuperblock(Default(), 5, Root{1}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSuperblock(b)
		if err != nil {
			return
		}
		again, err := s.Marshal()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if !bytes.Equal(again[:SuperblockSize], b[:SuperblockSize]) {
			t.Fatal("what is written is not what was read")
		}
	})
}

func TestTableLine(t *testing.T) {
	p := Default()
	start, err := p.HashStart(8192, true)
	if err != nil || start != 3 {
		t.Fatalf("hash start %d, %v", start, err)
	}
	table := Table{Params: p, DataDevice: "/dev/vda", HashDevice: "/dev/vda", DataBlocks: 2, HashStart: start, Root: Root{0xab},
		Options: []string{"panic_on_corruption"}}
	want := "1 /dev/vda /dev/vda 4096 4096 2 3 sha256 ab" + strings.Repeat("0", 62) + " " + strings.Repeat("0", 64) + " 1 panic_on_corruption"
	if line, err := table.Line(); err != nil || line != want || table.Sectors() != 16 {
		t.Errorf("%q of %d sectors (%v)\nwant %q of 16", line, table.Sectors(), err, want)
	}
	table.Salt = nil
	if line, _ := table.Line(); !strings.Contains(line, "00 - 1 panic") {
		t.Errorf("without salt: %q", line)
	}
	table.HashDevice = "/dev/vda 0 1"
	if line, err := table.Line(); err == nil {
		t.Errorf("a device of several words: %q", line)
	}
	if _, err := p.HashStart(100, true); err == nil {
		t.Error("an offset within a block was taken")
	}
}

// TestVeritysetup compares with the tool itself, both ways.
func TestVeritysetup(t *testing.T) {
	tool := needs.Program(t, "veritysetup")
	rootHash := regexp.MustCompile(`(?m)^Root hash:\s*([0-9a-f]{64})$`)
	for _, p := range []Params{Default(), {512, 512, nil}, {1024, 4096, []byte("salt")}, {4096, 512, bytes.Repeat([]byte{7}, 256)}, {2048, 1024, []byte{1}}} {
		for _, blocks := range []int{1, 2, 128, 129, 4097} {
			t.Run(fmt.Sprintf("%d-%d-%d-%d", p.DataBlock, p.HashBlock, len(p.Salt), blocks), func(t *testing.T) {
				data := pattern(blocks * p.DataBlock)
				// A hash area has to begin at a hash block, so data of small blocks is followed by a gap.
				f, offset, root := whole(t, p, data)
				path := filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(path, f.b, 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command(tool, "verify", path, path, root.String(), "--hash-offset", fmt.Sprint(offset)).CombinedOutput(); err != nil {
					t.Errorf("veritysetup refuses our tree: %v: %s", err, out)
				}
				salt := "-"
				if len(p.Salt) > 0 {
					salt = hex.EncodeToString(p.Salt)
				}
				if err := os.Truncate(path, offset); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(tool, "format", path, path, "--hash-offset", fmt.Sprint(offset), "--salt", salt, "--data-blocks", fmt.Sprint(blocks),
					"--data-block-size", fmt.Sprint(p.DataBlock), "--hash-block-size", fmt.Sprint(p.HashBlock), "--uuid", "4b5f7e1a-0000-4000-8000-000000000001").CombinedOutput()
				if err != nil {
					t.Fatalf("veritysetup format: %v: %s", err, out)
				}
				if m := rootHash.FindSubmatch(out); m == nil || string(m[1]) != root.String() {
					t.Errorf("root %s, veritysetup says %s", root, out)
				}
				theirs, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer theirs.Close()
				if _, err := Check(t.Context(), theirs, offset, root, 0); err != nil {
					t.Errorf("veritysetup's file: %v", err)
				}
			})
		}
	}
}
