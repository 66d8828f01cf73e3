package seal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/layer/verity"
)

var update = flag.Bool("update", false, "write the vectors anew")

// vector is one of testdata/vectors.json, which the reference documentation has, too.
type vector struct {
	Key, Salt, LayerKey string // hexadecimal
	Plain               string // how the data is made
	Blocks              int
	Ciphertext          string // SHA-256 of it
	First               string // 32 bytes of it
	Root                string
	HashOffset, Size    int64
	Whole               string // SHA-256 of the file
	KeyID, DiffID       string
}

// vectorKeyID names the key of vectors.
const vectorKeyID = "kbs:///default/image-key/vector"

// plain is the data of vectors: byte i is (7 i + i/4096) mod 256.
func plain(blocks int) []byte {
	b := make([]byte, blocks*sealed.BlockSize)
	for i := range b {
		b[i] = byte(7*i + i/sealed.BlockSize)
	}
	return b
}

// memory is a file.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if n := int(at) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[at:], p), nil
}

func compute(t *testing.T, key, salt []byte, blocks int) (vector, []byte) {
	t.Helper()
	var out memory
	data := plain(blocks)
	l, err := Seal(t.Context(), bytes.NewReader(data), int64(len(data)), &out, key, salt)
	if err != nil {
		t.Fatal(err)
	}
	layerKey, err := sealed.LayerKey(key, salt)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	return vector{
		Key: hex.EncodeToString(key), Salt: hex.EncodeToString(salt), LayerKey: hex.EncodeToString(layerKey),
		Plain: "byte i is (7*i + i/4096) mod 256", Blocks: blocks, Ciphertext: sum(out.b[:l.HashOffset]), First: hex.EncodeToString(out.b[:32]),
		Root: l.Root.String(), HashOffset: l.HashOffset, Size: l.Size, Whole: sum(out.b),
		KeyID: vectorKeyID, DiffID: sealed.DiffID("sha256:"+sum(out.b), l.Root.String(), l.HashOffset, vectorKeyID),
	}, out.b
}

func TestVectors(t *testing.T) {
	key, salt := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	var got []vector
	for _, blocks := range []int{1, 2, 129, 300} {
		v, file := compute(t, key, salt, blocks)
		if int64(len(file)) != v.Size {
			t.Errorf("%d bytes, said to be %d", len(file), v.Size)
		}
		got = append(got, v)
	}
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("testdata", "vectors.json")
	if *update {
		if err := os.WriteFile(name, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(want)) != string(text) {
		t.Errorf("got %s", text)
	}
}

// TestDiffID: it is the digest of the text in the reference documentation, and all that a layer is opened with is in it.
func TestDiffID(t *testing.T) {
	blob, root := "sha256:"+strings.Repeat("a", 64), strings.Repeat("b", 64)
	text := "cloister sealed layer 1\n" + blob + "\n" + root + "\n4096\nkbs:///a/b/c\n"
	sum := sha256.Sum256([]byte(text))
	got := sealed.DiffID(blob, root, 4096, "kbs:///a/b/c")
	if want := "sha256:" + hex.EncodeToString(sum[:]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for name, other := range map[string]string{
		"blob":   sealed.DiffID("sha256:"+strings.Repeat("c", 64), root, 4096, "kbs:///a/b/c"),
		"root":   sealed.DiffID(blob, strings.Repeat("c", 64), 4096, "kbs:///a/b/c"),
		"offset": sealed.DiffID(blob, root, 40960, "kbs:///a/b/c"),
		"key":    sealed.DiffID(blob, root, 4096, "kbs:///a/b/d"),
	} {
		if other == got {
			t.Errorf("another %s gives the same", name)
		}
	}
}

func TestOpen(t *testing.T) {
	key, salt := bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{4}, 32)
	v, file := compute(t, key, salt, 300)
	root, err := verity.ParseRoot(v.Root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), bytes.NewReader(file), v.HashOffset, root, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, plain(300)) {
		t.Errorf("what was sealed is not what was opened: %v", err)
	}
	part := make([]byte, 5000)
	if _, err := r.ReadAt(part, 4095); err != nil || !bytes.Equal(part, plain(300)[4095:9095]) {
		t.Errorf("reading a part: %v", err)
	}
	other, err := Open(t.Context(), bytes.NewReader(file), v.HashOffset, root, bytes.Repeat([]byte{5}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(other); err != nil || bytes.Equal(got[:16], plain(1)[:16]) {
		t.Errorf("another key opens it: %v", err)
	}
	for _, at := range []int64{0, v.HashOffset - 1, v.HashOffset + 90, v.Size - 4096} {
		changed := bytes.Clone(file)
		changed[at] ^= 1
		if _, err := Open(t.Context(), bytes.NewReader(changed), v.HashOffset, root, key); err == nil {
			t.Errorf("a changed byte at %d is not seen", at)
		}
	}
	if bytes.Contains(file, plain(1)[:32]) {
		t.Error("the plain data is in the file")
	}
}

func TestRefused(t *testing.T) {
	good := make([]byte, 32)
	for name, c := range map[string]struct {
		size      int64
		key, salt []byte
	}{
		"no data": {0, good, good}, "odd size": {4097, good, good}, "beyond": {8192, good, good},
		"short key": {4096, good[1:], good}, "long key": {4096, append(good, 0), good}, "no salt": {4096, good, nil},
	} {
		if l, err := Seal(t.Context(), bytes.NewReader(make([]byte, 4096)), c.size, &memory{}, c.key, c.salt); err == nil {
			t.Errorf("%s gave %+v", name, l)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Seal(ended, bytes.NewReader(make([]byte, 4096)), 4096, &memory{}, good, good); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	for id, ok := range map[string]bool{"kbs:///default/image-key/a": true, "": false, "file:///etc/passwd": false, "kbs:///a b": false, "kbs:///" + strings.Repeat("a", 600): false} {
		if err := sealed.CheckKeyID(id); (err == nil) != ok {
			t.Errorf("%.20q: %v", id, err)
		}
	}
}
