package cri

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cloister/cloister/test/containerd"
)

// fileLayer is a layer that is not compressed and lies in a file.
type fileLayer struct {
	path string
	hash v1.Hash
	size int64
}

func (l *fileLayer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// bigFile is the average size of a file in a big layer, in bytes.
const bigFile = 100_000

// bigLayer writes a layer of so many bytes of content that does not compress, in files of unequal sizes. It is the same for each size.
func bigLayer(path string, size int64) (*fileLayer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, sum := bufio.NewWriterSize(f, 1<<20), sha256.New()
	w := tar.NewWriter(io.MultiWriter(b, sum))
	content := rand.NewChaCha8([32]byte{byte(size >> 20), byte(size >> 28)})
	random := rand.New(content)
	for n := 0; size > 0; n++ {
		length := min(size, 1+random.Int64N(2*bigFile))
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("opt/package-%d/file-%d", n/100, n), Mode: 0o644, Size: length, Typeflag: tar.TypeReg,
			ModTime: time.Unix(1_700_000_000, 0)}); err != nil {
			return nil, err
		}
		if _, err := io.CopyN(w, content, length); err != nil {
			return nil, err
		}
		size -= length
	}
	if err := errors.Join(w.Close(), b.Flush()); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &fileLayer{path, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, st.Size()}, nil
}

// pushBig puts an image of busybox with a big layer over it into a registry, and returns what follows the registry's name in its own.
func pushBig(t testing.TB, registry string, size int64) string {
	t.Helper()
	base := containerd.Busybox(t, "registry.cloister.test/base:1")
	image, err := base.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "layer.tar")
	defer os.Remove(path)
	l, err := bigLayer(path, size)
	if err != nil {
		t.Fatalf("making a layer of %d bytes: %v", size, err)
	}
	if image, err = mutate.AppendLayers(image, l); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(fmt.Sprintf("%s/big:%d", registry, size), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image, remote.WithContext(t.Context())); err != nil {
		t.Fatalf("pushing an image of %d bytes: %v", size, err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return "/big@" + digest.String()
}

// TestBigLayer has the same layer twice, and another size.
func TestBigLayer(t *testing.T) {
	t.Parallel()
	sum := func(size int64) v1.Hash {
		l, err := bigLayer(filepath.Join(t.TempDir(), "layer"), size)
		if err != nil {
			t.Fatal(err)
		}
		if l.size < size {
			t.Errorf("a layer of %d bytes has %d", size, l.size)
		}
		return l.hash
	}
	if first, again := sum(1e6), sum(1e6); first != again || first == sum(3e6) {
		t.Error("layers have to be the same in each run, and another for another size")
	}
}
