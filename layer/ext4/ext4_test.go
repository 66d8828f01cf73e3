package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/cloister/cloister/layer/verity"
)

func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sample(t testing.TB) []byte {
	headers := []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "etc/hosts", Typeflag: tar.TypeReg, Mode: 0o644, Size: 123},
		{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, {Name: "etc/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "etc/hosts"}, {Name: "hard", Typeflag: tar.TypeLink, Linkname: "etc/hosts"},
		{Name: "attrs", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
	}
	for n := range 300 {
		headers = append(headers, tar.Header{Name: fmt.Sprintf("usr/share/%d", n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n * 1000)})
	}
	return archive(t, headers...)
}

func create(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRootIsHCSShims compares with the function by which hcsshim's tools compute root hashes.
func TestRootIsHCSShims(t *testing.T) {
	stream := sample(t)
	want, err := tar2ext4.ConvertAndComputeRootDigest(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	f := create(t)
	size, err := FromTar(t.Context(), bytes.NewReader(stream), f, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	_, root, err := verity.Hash(t.Context(), verity.Default(), f, size, 0)
	if err != nil || root.String() != want {
		t.Errorf("root %s (%v), want %s", root, err, want)
	}
}

func TestLimits(t *testing.T) {
	var limit *LimitError
	if _, err := FromTar(t.Context(), bytes.NewReader(sample(t)), create(t), 1<<20); !errors.As(err, &limit) {
		t.Errorf("a file system that is too large: %v", err)
	}
	deep := archive(t, tar.Header{Name: strings.Repeat("a/", 3000), Typeflag: tar.TypeDir, Format: tar.FormatPAX}, tar.Header{Name: "b", Typeflag: tar.TypeReg, Size: 4 << 20})
	if _, err := FromTar(t.Context(), bytes.NewReader(deep), create(t), 1<<30); !errors.As(err, &limit) {
		t.Errorf("a deep path: %v", err)
	}
	if _, err := FromTar(t.Context(), bytes.NewReader(sample(t)[:100000]), create(t), 1<<30); err == nil {
		t.Error("half a stream was taken")
	}
}

func FuzzFromTar(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 5}, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "a/b"}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		image := create(t)
		if size, err := FromTar(t.Context(), bytes.NewReader(stream), image, 8<<20); err == nil && size%4096 != 0 {
			t.Errorf("a file system of %d bytes", size)
		}
	})
}
