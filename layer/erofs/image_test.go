package erofs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// memory is a sink that keeps the image.
type memory struct {
	t     testing.TB
	image []byte
	next  int64
	last  bool
}

func (m *memory) Buffer(context.Context) ([]byte, error) { return make([]byte, BufferSize), nil }

func (m *memory) Blocks(_ context.Context, first int64, b []byte) error {
	switch {
	case len(b)%BlockSize != 0 || m.last:
		m.t.Errorf("%d bytes at block %d, after block 0: %v", len(b), first, m.last)
	case first == 0:
		m.last = true
	case first != max(1, m.next):
		m.t.Errorf("block %d follows block %d", first, m.next-1)
	default:
		m.next = first + int64(len(b)/BlockSize)
	}
	if need := int(first)*BlockSize + len(b); need > len(m.image) {
		m.image = append(m.image, make([]byte, need-len(m.image))...)
	}
	copy(m.image[first*BlockSize:], b)
	return nil
}

// build makes an image in memory.
func build(t testing.TB, stream []byte, o Options) ([]byte, error) {
	m := &memory{t: t}
	blocks, err := FromTar(t.Context(), bytes.NewReader(stream), m, o)
	if err != nil {
		return nil, err
	}
	if int64(len(m.image)) != blocks*BlockSize || !m.last {
		t.Errorf("image of %d bytes, want %d blocks", len(m.image), blocks)
	}
	return m.image, nil
}

// mounted writes the image to a file, checks it with fsck.erofs and mounts it.
func mounted(t *testing.T, image []byte) string {
	t.Helper()
	needs.Root(t, "mounts")
	needs.FileSystem(t, "erofs")
	dir := t.TempDir()
	path, target := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(needs.Program(t, "fsck.erofs"), path).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v: %s", err, out)
	}
	out, err := exec.Command(needs.Program(t, "dump.erofs"), "-s", path).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Filesystem magic number:                      0xE0F5E1E2")) {
		t.Errorf("dump.erofs: %v: %s", err, out)
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", path, target).CombinedOutput(); err != nil {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return target
}
