package imagesource

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cloister/cloister/internal/testregistry"
)

// entries are the files of a cache without its key.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) == 0 {
		t.Fatalf("entries of the cache: %v, %v", names, err)
	}
	return names
}

// blobs counts the layers that were fetched.
func blobs(r *testregistry.Registry) int {
	n := 0
	for _, q := range r.Requests() {
		if strings.HasPrefix(q, "GET ") && strings.Contains(q, "/blobs/") {
			n++
		}
	}
	return n
}

// TestCachePoisoned changes entries in every way somebody without the key could, and wants the truth all the same.
func TestCachePoisoned(t *testing.T) {
	r := registryOf(t, testregistry.Options{})
	img := image(t, "amd64")
	push(t, r.Addr()+"/app:1", index(t, map[string]v1.Image{"amd64": img, "arm64": img}))
	dir := filepath.Join(t.TempDir(), "cache")
	o := Options{Cache: dir, Registry: RegistryOptions{Insecure: []string{r.Addr()}}}
	read := func() *Image {
		t.Helper()
		got, err := get(t, o, r.Addr()+"/app:1", all)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := read()
	before := blobs(r)
	read()
	if n := blobs(r) - before; n != 1 { // the configuration
		t.Errorf("%d blobs fetched with a warm cache", n)
	}
	names := entries(t, dir)
	if info, err := os.Stat(filepath.Join(dir, "key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	other, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func([]byte) []byte{
		"another root": func(b []byte) []byte {
			return bytes.Replace(b, []byte(want.Layers[0].Root), bytes.Repeat([]byte("0"), 64), 1)
		},
		"another user":    func(b []byte) []byte { return bytes.Replace(b, []byte(`"file"`), []byte(`"gone"`), 1) },
		"another's entry": func([]byte) []byte { return other },
		"no code":         func(b []byte) []byte { return bytes.Replace(b, []byte("hmac_sha256"), []byte("hmac_nothing"), 1) },
		"cut":             func(b []byte) []byte { return b[:len(b)/2] },
		"empty":           func([]byte) []byte { return nil },
	} {
		for _, n := range names {
			text, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(n, change(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := read()
		if got.Layers[0].Root != want.Layers[0].Root || !bytes.Equal(got.Passwd, want.Passwd) {
			t.Errorf("%s: the cache was believed", what)
		}
		before := blobs(r)
		if read(); blobs(r)-before != 1 {
			t.Errorf("%s: the entries were not made anew", what)
		}
	}
	// A link to elsewhere is no entry, and a key that others can read is none.
	if err := os.Rename(names[0], filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("moved", names[0]); err != nil {
		t.Fatal(err)
	}
	read()
	if err := os.Chmod(filepath.Join(dir, "key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "hint: rm ") {
		t.Errorf("a key for all: %v", err)
	}
}
