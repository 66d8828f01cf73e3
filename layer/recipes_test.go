package layer

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/layer/verity"
)

func TestBlobUUID(t *testing.T) {
	for descriptor, want := range map[string]string{
		"sha256:deadbeef": "ebc0b188-5b2a-52e0-b4a0-21a192556101",
		"sha256:25f1d6b1951ac8eb3740558fe94cb83d377bdadf95fd9f98b50d2e1b96130471": "bbd1bbf7-a4ab-554a-8c54-61915f102522",
	} {
		if got := blobUUID(descriptor); got != want {
			t.Errorf("%s: %s, want %s", descriptor, got, want)
		}
	}
}

// built builds with and without a file, and checks the file.
func built(t *testing.T, stream []byte, o Options) (Result, *os.File) {
	t.Helper()
	o.TempDir = t.TempDir()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	result, err := Build(t.Context(), bytes.NewReader(stream), f, o)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Build(t.Context(), bytes.NewReader(stream), nil, o); err != nil || again != result {
		t.Errorf("the second time: %+v (%v), the first %+v", again, err, result)
	}
	root, err := verity.ParseRoot(result.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verity.Check(t.Context(), f, result.HashOffset, root, 0); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v (%v)", left, err)
	}
	return result, f
}

func TestHCSShimRecipe(t *testing.T) {
	stream := archive(t, 300)
	want, err := tar2ext4.ConvertAndComputeRootDigest(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	got, f := built(t, stream, Options{Recipe: HCSShim})
	if got.Root != want {
		t.Errorf("root %s, want %s", got.Root, want)
	}
	f.Seek(0, 0)
	if size, _, err := tar2ext4.Ext4FileSystemSize(f); err != nil || size != got.HashOffset {
		t.Errorf("ext4 of %d bytes (%v), hash offset %d", size, err, got.HashOffset)
	}
}

func TestContainerdRecipe(t *testing.T) {
	if err := checkMkfs(t.Context()); err != nil {
		needs.Optional(t, "mkfs.erofs 1.8.2 or later, which Debian 12 does not have: %v", err)
	}
	stream := archive(t, 300)
	descriptor := "sha256:" + strings.Repeat("ab", 32)
	got, _ := built(t, stream, Options{Recipe: Containerd, Descriptor: descriptor})
	// As containerd does it, by a shell.
	path := filepath.Join(t.TempDir(), "theirs")
	cmd := exec.Command("mkfs.erofs", "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", "-T0", "--mkfs-time", "--sort=none", "-U", blobUUID(descriptor), path)
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	theirs, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	st, err := theirs.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, root, err := verity.Hash(t.Context(), verity.Default(), theirs, st.Size(), 0); err != nil || root.String() != got.Root {
		t.Errorf("root %s, want %s (%v)", got.Root, root, err)
	}
	if _, err := Build(t.Context(), bytes.NewReader(stream), nil, Options{Recipe: Containerd, Descriptor: descriptor, MaxSize: 64 << 10}); err == nil {
		t.Error("a layer over the limit was built")
	}
	if _, err := Build(t.Context(), bytes.NewReader(stream), nil, Options{Recipe: Containerd}); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without descriptor: %v", err)
	}
}

// TestMkfsVersion runs programs that say what others said.
func TestMkfsVersion(t *testing.T) {
	for _, c := range []struct{ says, want string }{
		{"mkfs.erofs (erofs-utils) 1.8.6\navailable compressors: lz4", ""},
		{"mkfs.erofs (erofs-utils) 1.8.2", ""},
		{"mkfs.erofs (erofs-utils) 1.9", ""},
		{"mkfs.erofs 1.8.1", "version 1.8.1"},
		{"mkfs.erofs 1.5\nmkfs.erofs: unrecognized option", "version 1.5.0"},
		{"hello", "cannot tell the version"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, mkfsErofs), []byte("#!/bin/sh\ncat <<'E'\n"+c.says+"\nE\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		err := checkMkfs(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "hint: ")) {
			t.Errorf("%q: %v, want %q", c.says, err, c.want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Build(context.Background(), bytes.NewReader(nil), nil, Options{Recipe: Containerd, Descriptor: "sha256:aa"}); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without the program: %v", err)
	}
}
