package image

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/testregistry"
)

// tmpfsWorkDir mounts a tmpfs, as the guest has one, and skips the test where that is impossible.
func tmpfsWorkDir(t *testing.T) string {
	t.Helper()
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		needs.Missing(t, "the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestOverlay mounts a real root file system: whiteouts hide, opaque directories hide, writes stay in the container.
func TestOverlay(t *testing.T) {
	base := tmpfsWorkDir(t)
	reg := startRegistry(t, testregistry.Options{})
	lowest := ociLayer(t, "gzip", file{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o751}, ""},
		regular("keep", "low"), regular("gone", "x"), directory("opaque"), regular("opaque/old", "x"), directory("merged"), regular("merged/old", "x"))
	ref := pushImage(t, reg, "app", "v1", lowest,
		ociLayer(t, "zstd", regular(".wh.gone", ""), directory("opaque"), regular("opaque/.wh..wh..opq", ""), regular("opaque/new", "y"), directory("merged"), regular("merged/new", "y")),
		ociLayer(t, "", file{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, ""}, regular("keep", "top")),
		lowest) // the same layer again, on top
	c, _ := newClient(t, reg, Config{WorkDir: filepath.Join(base, "image"), Mounter: Overlay{}}, nil)
	var bundles []string
	for _, name := range []string{"one", "two"} {
		bundle := filepath.Join(base, name)
		if _, err := c.PullImage(testContext(t), ref, bundle); err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, filepath.Join(bundle, "rootfs"))
	}
	root := bundles[0]
	if mustRead(t, root, "keep") != "low" || mustRead(t, root, "gone") != "x" {
		t.Error("the topmost layer does not decide")
	}
	if mustRead(t, root, "merged/new") != "y" || mustRead(t, root, "merged/old") != "x" || mustRead(t, root, "opaque/new") != "y" {
		t.Error("directories are not merged")
	}
	if err := os.WriteFile(filepath.Join(root, "written"), []byte("z"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bundles[1], "written")); err == nil {
		t.Error("one container sees what another wrote")
	}
	for _, r := range bundles {
		if err := c.Release(filepath.Dir(r)); err != nil {
			t.Error(err)
		}
	}
	wantNothingLeft(t, c, nil)
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), base+"/one") {
		t.Errorf("still mounted (%v)", err)
	}

	two := pushImage(t, reg, "hide", "v1", lowest,
		ociLayer(t, "gzip", regular(".wh.gone", ""), directory("opaque"), regular("opaque/.wh..wh..opq", ""), regular("opaque/new", "y")))
	bundle := filepath.Join(base, "three")
	if _, err := c.PullImage(testContext(t), two, bundle); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gone", "opaque/old"} {
		if _, err := os.Stat(filepath.Join(bundle, "rootfs", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is visible: %v", name, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestManyLayers: more layers than mount(2) can name in one page.
func TestManyLayers(t *testing.T) {
	base := tmpfsWorkDir(t)
	reg := startRegistry(t, testregistry.Options{})
	var layers []testLayer
	for i := range 150 {
		layers = append(layers, ociLayer(t, "gzip", regular("f"+itoa(i), itoa(i))))
	}
	long := filepath.Join(base, strings.Repeat("long-", 20))
	c, _ := newClient(t, reg, Config{WorkDir: long, Mounter: Overlay{}}, nil)
	bundle := filepath.Join(base, "bundle")
	if _, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", layers...), bundle); err != nil {
		t.Fatal(err)
	}
	if mustRead(t, bundle, "rootfs/f0") != "0" || mustRead(t, bundle, "rootfs/f149") != "149" {
		t.Error("layers are missing")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestFullWorkDir: an image that does not fit is refused, and leaves the space as it was.
func TestFullWorkDir(t *testing.T) {
	base := tmpfsWorkDir(t)
	reg := startRegistry(t, testregistry.Options{})
	c, m := newClient(t, reg, Config{WorkDir: base}, nil)
	_, err := c.PullImage(testContext(t), pushImage(t, reg, "app", "v1", zeroLayer(t, "gzip", 80<<20)), bundleDir(t))
	wantError(t, err, "exceeds the limit of")
	wantNothingLeft(t, c, m)
}
