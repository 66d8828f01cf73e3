package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/layer/verity"
)

// archive makes a small tar.
func archive(t *testing.T, files int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n := range files {
		content := bytes.Repeat([]byte(fmt.Sprintf("content %d\n", n)), n*37%3000+1)
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir%d/file%d", n%7, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)),
			ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBuild(t *testing.T) {
	data := archive(t, 500)
	want, err := Build(t.Context(), bytes.NewReader(data), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if want.DiffID != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Errorf("diff ID %s", want.DiffID)
	}
	for _, workers := range []int{1, 2, 7} {
		path := filepath.Join(t.TempDir(), "layer.erofs")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := Build(t.Context(), io.MultiReader(bytes.NewReader(data[:777]), bytes.NewReader(data[777:])), f, Options{Recipe: Cloister, Workers: workers})
		if err != nil || got != want {
			t.Fatalf("with %d workers: %+v (%v), want %+v", workers, got, err, want)
		}
		if st, err := f.Stat(); err != nil || st.Size() != got.Size {
			t.Errorf("file of %v bytes, want %d", st.Size(), got.Size)
		}
		root, err := verity.ParseRoot(got.Root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verity.Check(t.Context(), f, got.HashOffset, root, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestBuiltFile: other tools take the whole file.
func TestBuiltFile(t *testing.T) {
	result, f := built(t, archive(t, 200), Options{})
	tool := needs.Program(t, "veritysetup")
	if out, err := exec.Command(tool, "verify", f.Name(), f.Name(), result.Root, "--hash-offset", fmt.Sprint(result.HashOffset)).CombinedOutput(); err != nil {
		t.Errorf("veritysetup: %v: %s", err, out)
	}
	needs.Root(t, "mounts")
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", f.Name(), dir).CombinedOutput(); err != nil {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	defer unix.Unmount(dir, 0)
	for n := range 200 {
		want := bytes.Repeat([]byte(fmt.Sprintf("content %d\n", n)), n*37%3000+1)
		if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("dir%d/file%d", n%7, n))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %d: %d bytes (%v), want %d", n, len(got), err, len(want))
		}
	}
}

type failing struct{ after int64 }

func (f failing) WriteAt(b []byte, at int64) (int, error) {
	if at >= f.after {
		return 0, os.ErrClosed
	}
	return len(b), nil
}

func TestBuildReportsFailures(t *testing.T) {
	data := archive(t, 900)
	for _, after := range []int64{0, 1 << 20, 5 << 20} {
		if _, err := Build(t.Context(), bytes.NewReader(data), failing{after}, Options{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("writes fail from %d: %v", after, err)
		}
	}
	broken := io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotestErr{io.ErrUnexpectedEOF})
	if _, err := Build(t.Context(), broken, nil, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a broken stream: %v", err)
	}
	// What a decompressor reports behind the end of the archive counts too.
	broken = io.MultiReader(bytes.NewReader(data), iotestErr{io.ErrUnexpectedEOF})
	if _, err := Build(t.Context(), broken, nil, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a stream that breaks at its end: %v", err)
	}
	if _, err := Build(t.Context(), io.MultiReader(bytes.NewReader(data), &zeros{maxTrailer + 1}), nil, Options{}); err == nil || !strings.Contains(err.Error(), "follow") {
		t.Errorf("a stream that does not end: %v", err)
	}
	if _, err := Build(t.Context(), bytes.NewReader(data), nil, Options{MaxSize: 1 << 20}); err == nil || !strings.Contains(err.Error(), "limit of 1048576") {
		t.Errorf("a layer over the limit: %v", err)
	}
	if _, err := Build(t.Context(), bytes.NewReader(data), nil, Options{Recipe: "tar"}); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("an unknown recipe: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, bytes.NewReader(data), nil, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

type zeros struct{ left int }

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), z.left)
	clear(b[:n])
	z.left -= n
	return n, nil
}
