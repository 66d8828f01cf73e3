package erofs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// sparse is an entry as old GNU tar writes a file with one piece of data, which ends at a multiple of 512 or at the file's end.
func sparse(t testing.TB, name string, size, offset int64, data string) []byte {
	t.Helper()
	b := archive(t, file(name, data))
	b = b[:len(b)-1024] // without the end
	number := func(at int, n int64) { copy(b[at:], fmt.Sprintf("%011o\x00", n)) }
	b[156] = tar.TypeGNUSparse
	copy(b[257:], "ustar  \x00")
	clear(b[345:512])
	number(386, offset)
	number(398, int64(len(data)))
	number(410, size)
	number(422, 0)
	number(483, size)
	copy(b[148:], "        ")
	var sum int64
	for _, c := range b[:512] {
		sum += int64(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHugeFileWithHoles(t *testing.T) {
	const size, offset = 6<<30 + 12345, 5<<30 + 4096
	image, err := build(t, append(sparse(t, "huge", size, offset, strings.Repeat("d", 512)), archive(t, file("next", "n"))...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(image) > 2<<20 {
		t.Errorf("an image of %d bytes for 512 bytes of data", len(image))
	}
	dir := mounted(t, image)
	f, err := os.Open(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Errorf("size %d (%v), want %d", st.Size(), err, int64(size))
	}
	got := make([]byte, 2048)
	if _, err := f.ReadAt(got, offset-512); err != nil || string(got) != strings.Repeat("\x00", 512)+strings.Repeat("d", 512)+strings.Repeat("\x00", 1024) {
		t.Errorf("around the data: %q (%v)", got, err)
	}
	for _, at := range []int64{0, 1 << 32, size - 100} {
		if n, err := f.ReadAt(got, at); err != nil && n != 100 || !bytes.Equal(got[:n], make([]byte, n)) {
			t.Errorf("at %d: %q (%v)", at, got[:n], err)
		}
	}
}

// TestSparseFormats: the image does not depend on how holes were archived.
func TestSparseFormats(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(7) {
		if _, err := f.WriteAt([]byte(fmt.Sprintf("piece %d", n)), n*700_001); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(10_000_000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	images := map[string][]byte{}
	for name, args := range map[string][]string{"plain": {"--format=gnu"}, "gnu": {"--format=gnu", "-S"}, "0.0": {"--format=posix", "-S", "--sparse-version=0.0"},
		"0.1": {"--format=posix", "-S", "--sparse-version=0.1"}, "1.0": {"--format=posix", "-S", "--sparse-version=1.0"}} {
		out, err := exec.Command("tar", append(args, "--mtime=@1", "--sort=name", "-C", dir, "-c", "file")...).Output()
		if err != nil {
			t.Fatalf("tar: %v", err)
		}
		if images[name], err = build(t, out, Options{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, image := range images {
		if !bytes.Equal(image, images["plain"]) {
			t.Errorf("the image of %q is another one than that of the file without holes", name)
		}
	}
	if len(images["plain"]) > 2_000_000 {
		t.Errorf("image of %d bytes", len(images["plain"]))
	}
	want, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(mounted(t, images["1.0"]), "file")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs (%v)", err)
	}
}

// TestWhiteouts: whiteouts hide what the layers below have, wherever they are in the archive, and nothing of their own layer.
func TestWhiteouts(t *testing.T) {
	image, err := build(t, archive(t,
		file(".wh.gone", ""), file("dir/.wh.gone", ""),
		other(tar.TypeDir, "opaque", ""), file("opaque/.wh..wh..opq", ""), other(tar.TypeDir, "opaque", ""), file("opaque/new", "n"),
		file(".wh.remade", ""), file("remade/new", "n"),
		file("made/new", "n"), file(".wh.made", ""),
		file("kept", "k"), file(".wh.kept", ""), file(".wh.back", ""), file("back", "b"),
		file(".wh..wh.plnk", ""), file("missing/.wh..wh..opq", ""),
	), Options{})
	if err != nil {
		t.Fatal(err)
	}
	list := listing(t, mounted(t, image))
	const whiteout, opaque = "device 0:0", ` trusted.overlay.opaque="y"`
	for name, want := range map[string]string{"/gone": whiteout, "/dir/gone": whiteout, "/opaque": opaque, "/remade": opaque, "/made": opaque, "/missing": opaque,
		"/opaque/new": "1 bytes", "/remade/new": "1 bytes", "/made/new": "1 bytes", "/kept": "1 bytes", "/back": "1 bytes"} {
		if !strings.Contains(list[name], want) {
			t.Errorf("%s is %q, want %q", name, list[name], want)
		}
	}
	if len(list) != 13 { // with the root and dir
		t.Errorf("%d files, want 13: %v", len(list), list)
	}

	// The kernel sees it so, too.
	lower, err := build(t, archive(t, file("gone", ""), file("dir/gone", ""), file("dir/stays", ""), file("opaque/old", ""), file("remade/old", ""), file("made/old", "")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	options := "lowerdir=" + mounted(t, image) + ":" + mounted(t, lower)
	target := t.TempDir()
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options); err != nil {
		needs.Missing(t, "overlay mounts: %v", err)
	}
	defer unix.Unmount(target, 0)
	var names []string
	for name := range listing(t, target) {
		names = append(names, name)
	}
	for _, name := range []string{"/gone", "/dir/gone", "/opaque/old", "/remade/old", "/made/old"} {
		if contains(names, name) {
			t.Errorf("%s is not hidden", name)
		}
	}
	for _, name := range []string{"/dir/stays", "/opaque/new", "/remade/new", "/made/new"} {
		if !contains(names, name) {
			t.Errorf("%s is hidden", name)
		}
	}
}

// TestWhiteoutsAlone: whiteouts in a directory that no other layer has are not listed either.
func TestWhiteoutsAlone(t *testing.T) {
	image, err := build(t, archive(t, file(".wh.gone", ""), file("new/.wh.gone", ""), file("new/file", ""), file("shut/.wh..wh..opq", ""), file("shut/.wh.gone", "")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := build(t, archive(t, file("other", ""), file("shut/gone", "")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+mounted(t, image)+":"+mounted(t, other)); err != nil {
		needs.Missing(t, "overlay mounts: %v", err)
	}
	defer unix.Unmount(target, 0)
	for dir, want := range map[string]string{"": "new other shut", "new": "file", "shut": ""} {
		entries, err := os.ReadDir(filepath.Join(target, dir))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q lists %q, want %q", dir, got, want)
		}
	}
}

func contains(list []string, name string) bool {
	for _, n := range list {
		if n == name {
			return true
		}
	}
	return false
}

// TestOrderOfEntries: what a later entry says counts, and names stay within the layer.
func TestOrderOfEntries(t *testing.T) {
	late := other(tar.TypeDir, "dir", "")
	late.Mode, late.Uid = 0o700, 7
	overlay := file("plain", "p")
	overlay.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/", "SCHILY.xattr.user.kept": "k",
		"SCHILY.xattr.system.unknown": "u"}
	root := other(tar.TypeDir, "./", "")
	root.Mode = 0o711
	image, err := build(t, archive(t,
		file("dir/file", "1"), late, root,
		file("/absolute", "a"),
		file("first", "1"), other(tar.TypeLink, "second", "first"), file("first", "2"), other(tar.TypeLink, "second", "second"),
		file("tree/a/b", "x"), file("tree", "now a file"), other(tar.TypeSymlink, "file-link", "dir"), file("file-link", "replaced"),
		other(tar.TypeDir, "usr/lib", ""), other(tar.TypeSymlink, "lib", "usr/lib"), file("lib/module", "m"), other(tar.TypeSymlink, "up", "../../../usr"), file("up/tool", "t"),
		other(tar.TypeSymlink, "abs", "/made/here"), file("abs/file", "f"), other(tar.TypeLink, "through", "lib/module"),
		overlay,
	), Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, image)
	list := listing(t, mounted(t, image))
	for name, want := range map[string]string{"/dir": "40700 7:0", "/dir/file": "1 bytes", "": "40711", "/absolute": "1 bytes", "/first": "links 1", "/second": "links 1",
		"/tree": "10 bytes", "/file-link": "8 bytes", "/usr/lib/module": "links 2", "/through": "links 2", "/usr/tool": "1 bytes", "/lib": "to usr/lib",
		"/made/here/file": "1 bytes", "/made": "40755 0:0 links 3 at 0.0", "/plain": `user.kept="k"`} {
		if !strings.Contains(list[name], want) {
			t.Errorf("%s is %q, want %q", name, list[name], want)
		}
	}
	if strings.Contains(list["/plain"], "overlay") {
		t.Errorf("attributes of overlayfs were kept: %s", list["/plain"])
	}
	if list["/first"] == list["/second"] {
		t.Error("a file that was replaced changed its other name")
	}
}

func TestEmptyLayer(t *testing.T) {
	image, err := build(t, archive(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if list := listing(t, mounted(t, image)); len(list) != 1 || len(image) != 2*BlockSize {
		t.Errorf("image of %d bytes with %v", len(image), list)
	}
	if _, err := FromTar(t.Context(), io.LimitReader(bytes.NewReader(nil), 0), &memory{t: t}, Options{}); err != nil {
		t.Errorf("no bytes at all: %v", err)
	}
}
