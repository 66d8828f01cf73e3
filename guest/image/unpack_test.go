package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

func testUsage() *usage {
	return &usage{limits: Limits{MaxBytes: 64 << 20, MaxRatio: 1100, MaxEntries: 10_000, MaxPathBytes: 4096}}
}

func unpackFiles(t testing.TB, files ...file) (string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, unpack(bytes.NewReader(makeTar(t, files...)), dir, testUsage())
}

// TestUnpackRefuses: entries that would write outside the layer, or are not files.
func TestUnpackRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files []file
		want  []string
	}{
		{"parent in the name", []file{regular("../evil", "x")}, []string{`"../evil"`, "path traversal"}},
		{"parent inside the name", []file{regular("a/../../evil", "x")}, []string{"path traversal"}},
		{"parent of a directory", []file{directory("../evil/")}, []string{"path traversal"}},
		{"through an absolute symbolic link", []file{link("a", "OUT", tar.TypeSymlink), regular("a/evil", "x")}, []string{`"a/evil"`, "path traversal"}},
		{"through a relative symbolic link", []file{link("a", "../out", tar.TypeSymlink), regular("a/evil", "x")}, []string{"path traversal"}},
		{"through two symbolic links", []file{directory("d"), link("d/up", "..", tar.TypeSymlink), link("a", "d/up/../out", tar.TypeSymlink), regular("a/evil", "x")}, []string{"path traversal"}},
		{"directory through a symbolic link", []file{link("a", "OUT", tar.TypeSymlink), directory("a/evil")}, []string{"path traversal"}},
		{"whiteout through a symbolic link", []file{link("a", "OUT", tar.TypeSymlink), regular("a/.wh.precious", "")}, []string{"path traversal"}},
		{"opaque through a symbolic link", []file{link("a", "OUT", tar.TypeSymlink), regular("a/.wh..wh..opq", "")}, []string{"path traversal"}},
		{"whiteout of the parent", []file{regular("a/.wh...", "")}, []string{"impossible name"}},
		{"hard link to a parent", []file{link("a", "../out/precious", tar.TypeLink)}, []string{"hard link", "path traversal"}},
		{"hard link through a symbolic link", []file{link("s", "OUT", tar.TypeSymlink), link("a", "s/precious", tar.TypeLink)}, []string{"hard link", "path traversal"}},
		{"hard link to an absolute path", []file{link("a", "OUT/precious", tar.TypeLink)}, []string{"hard link", "no such file"}},
		{"hard link to a directory", []file{directory("d"), link("a", "d", tar.TypeLink)}, []string{"hard link", "not a regular file"}},
		{"hard link to a whiteout", []file{regular(".wh.d", ""), link("a", "d", tar.TypeLink)}, []string{"hard link", "not a regular file"}},
		{"character device", []file{{hdr: tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}}}, []string{`"dev/mem"`, "character device 1:1", "not allowed"}},
		{"whiteout device", []file{{hdr: tar.Header{Name: "x", Typeflag: tar.TypeChar}}}, []string{"character device 0:0"}},
		{"block device", []file{{hdr: tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}}}, []string{`"dev/sda"`, "block device 8:0"}},
		{"file below a file", []file{regular("a", "x"), regular("a/b", "y")}, []string{"not a directory"}},
		{"root is a file", []file{regular(".", "x")}, []string{"root is not a directory"}},
		{"long path", []file{regular(strings.Repeat("a/", 3000)+"x", "y")}, []string{"limit"}},
		{"long component", []file{regular(strings.Repeat("a", 300), "y")}, []string{"name too long"}},
		{"trusted attribute", []file{{hdr: tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}}}}, []string{"trusted.overlay.redirect"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			out := filepath.Join(base, "out")
			layer := filepath.Join(base, "layer")
			for _, d := range []string{out, layer} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(out, "precious"), []byte("precious"), 0o644); err != nil {
				t.Fatal(err)
			}
			for i := range tc.files {
				tc.files[i].hdr.Linkname = strings.Replace(tc.files[i].hdr.Linkname, "OUT", out, 1)
			}
			err := unpack(bytes.NewReader(makeTar(t, tc.files...)), layer, testUsage())
			wantError(t, err, tc.want...)
			entries, _ := os.ReadDir(out)
			if len(entries) != 1 || mustRead(t, out, "precious") != "precious" {
				t.Errorf("outside was changed: %v", entries)
			}
			if entries, _ := os.ReadDir(base); len(entries) != 2 {
				t.Errorf("beside the layer there is now: %v", entries)
			}
		})
	}
}

func TestUnpackContent(t *testing.T) {
	when := time.Unix(1_234_567_890, 0)
	dir, err := unpackFiles(t,
		directory("./"),
		file{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: when}, ""},
		file{tar.Header{Name: "d/setuid", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: when}, "x"},
		regular("/absolute", "in the layer"),
		link("d/hard", "/d/setuid", tar.TypeLink),
		link("soft", "/etc/passwd", tar.TypeSymlink),
		regular("missing/parents/file", "y"),
		link("rel", "d", tar.TypeSymlink), regular("rel/through", "z"), // stays in the layer
		file{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		regular("replaced", "old"), regular("replaced", "new"),
		directory("tree/sub"), regular("tree/sub/f", ""), regular("tree", "now a file"),
		regular("was-a-file", ""), directory("was-a-file"),
	)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"absolute": "in the layer", "d/hard": "x", "missing/parents/file": "y", "d/through": "z", "replaced": "new", "tree": "now a file"} {
		if got := mustRead(t, dir, name); got != want {
			t.Errorf("%s is %q, expected %q", name, got, want)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "d"))
	if err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o777 || !st.ModTime().Equal(when) {
		t.Errorf("d: %v %v %v", err, st.Mode(), st.ModTime())
	}
	if st, err = os.Stat(filepath.Join(dir, "d/setuid")); err != nil || st.Mode() != os.ModeSetuid|0o755 || !st.ModTime().Equal(when) {
		t.Errorf("d/setuid: %v %v %v", err, st.Mode(), st.ModTime())
	}
	if target, err := os.Readlink(filepath.Join(dir, "soft")); err != nil || target != "/etc/passwd" {
		t.Errorf("soft: %v %q", err, target)
	}
	if st, err = os.Lstat(filepath.Join(dir, "pipe")); err != nil || st.Mode() != os.ModeNamedPipe|0o600 {
		t.Errorf("pipe: %v %v", err, st)
	}
	if st, err = os.Stat(filepath.Join(dir, "was-a-file")); err != nil || !st.IsDir() {
		t.Errorf("was-a-file: %v %v", err, st)
	}
}

func TestUnpackWhiteouts(t *testing.T) {
	requireRoot(t)
	dir, err := unpackFiles(t,
		directory("etc"), regular("etc/.wh.gone", ""), regular("etc/.wh..wh.plnk", ""),
		directory("all"), regular("all/.wh..wh..opq", ""), regular("all/kept", "x"),
		regular(".wh.reborn", ""), directory("reborn"), regular("reborn/new", ""),
		regular("own", "y"), regular(".wh.own", ""),
		regular("nodir/.wh..wh..opq", ""),
	)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(filepath.Join(dir, "etc/gone"))
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("etc/gone: %v %v", err, st)
	}
	for name, want := range map[string]bool{"all": true, "reborn": true, "nodir": true, "etc": false} {
		buf := make([]byte, 8)
		n, err := unix.Getxattr(filepath.Join(dir, name), xattrOpaque, buf)
		if got := err == nil && string(buf[:n]) == "y"; got != want {
			t.Errorf("%s is opaque: %v, expected %v (%v)", name, got, want, err)
		}
	}
	if mustRead(t, dir, "own") != "y" {
		t.Error("a whiteout hid a file of its own layer")
	}
	if _, err := os.Lstat(filepath.Join(dir, "etc/.wh..wh.plnk")); err == nil {
		t.Error("aufs metadata was unpacked")
	}
}

func TestUnpackOwnersAndAttributes(t *testing.T) {
	requireRoot(t)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, h := range []tar.Header{
		{Name: "f", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 1000, Gid: 2000, PAXRecords: map[string]string{
			"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.security.capability": capability}},
		{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "f", Uid: 3000, Gid: 4000},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	dir := t.TempDir()
	if err := unpack(&buf, dir, testUsage()); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "f"), &st); err != nil || st.Uid != 1000 || st.Gid != 2000 || st.Mode&0o7777 != 0o6755 {
		t.Errorf("f: %v %d:%d %o", err, st.Uid, st.Gid, st.Mode)
	}
	if err := unix.Lstat(filepath.Join(dir, "s"), &st); err != nil || st.Uid != 3000 || st.Gid != 4000 {
		t.Errorf("s: %v %d:%d", err, st.Uid, st.Gid)
	}
	out := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(dir, "f"), "security.capability", out); err != nil || string(out[:n]) != capability {
		t.Errorf("capability: %v %q", err, out[:max(n, 0)])
	}
	if n, err := unix.Getxattr(filepath.Join(dir, "f"), "user.note", out); err != nil || string(out[:n]) != "hello" {
		if errors.Is(err, unix.ENOTSUP) {
			needs.Missing(t, "a file system with attributes of users for temporary files: %v", err)
		}
		t.Errorf("user.note: %v", err)
	}
}

func TestUnpackLimits(t *testing.T) {
	many := make([]file, 50)
	for i := range many {
		many[i] = regular("f"+itoa(i), "")
	}
	for _, tc := range []struct {
		name   string
		limits Limits
		files  []file
		want   string
	}{
		{"entries", Limits{MaxEntries: 49, MaxBytes: 1 << 20, MaxPathBytes: 100}, many, "number of files"},
		{"entries by parents", Limits{MaxEntries: 10, MaxBytes: 1 << 20, MaxPathBytes: 100}, []file{regular(strings.Repeat("a/", 20)+"f", "")}, "number of files"},
		{"content", Limits{MaxEntries: 49, MaxBytes: 1000, MaxPathBytes: 100}, []file{regular("a", strings.Repeat("x", 600)), regular("b", strings.Repeat("x", 600))}, "size of the image's files"},
		{"path", Limits{MaxEntries: 49, MaxBytes: 1000, MaxPathBytes: 5}, []file{regular("a/b/c/d", "")}, "length of its path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := unpack(bytes.NewReader(makeTar(t, tc.files...)), t.TempDir(), &usage{limits: tc.limits})
			wantError(t, err, tc.want)
			var le *LimitError
			if !errors.As(err, &le) {
				t.Errorf("not a LimitError: %v", err)
			}
		})
	}
}

func TestUnpackBrokenStreams(t *testing.T) {
	whole := makeTar(t, regular("a", strings.Repeat("x", 2000)), regular("b", "y"))
	for _, n := range []int{100, 512, 700, 1024, 2600, 3000} {
		if err := unpack(bytes.NewReader(whole[:n]), t.TempDir(), testUsage()); err == nil {
			t.Errorf("the first %d bytes of %d are accepted", n, len(whole))
		}
	}
	// A PAX header that announces more than any header may have.
	var huge bytes.Buffer
	hdr := make([]byte, 512)
	copy(hdr, "PaxHeader/x")
	copy(hdr[100:], "0000644\x000000000\x000000000\x0077777777777\x0000000000000\x00        ")
	hdr[156] = 'x'
	copy(hdr[257:], "ustar\x0000")
	sum := 0
	for _, b := range hdr {
		sum += int(b)
	}
	copy(hdr[148:], []byte("000000\x00 "))
	copy(hdr[148:], []byte(octal(sum)))
	huge.Write(hdr)
	huge.Write(make([]byte, 4096))
	err := unpack(&huge, t.TempDir(), testUsage())
	wantError(t, err, "tar")
}

func octal(n int) string {
	s := ""
	for range 6 {
		s = string(rune('0'+n%8)) + s
		n /= 8
	}
	return s
}

// TestUnpackReplacesParent has a directory take the place of a symbolic link that led to the parent used last.
func TestUnpackReplacesParent(t *testing.T) {
	for _, way := range []file{directory("link"), regular("link", "x")} {
		dir := t.TempDir()
		err := unpack(bytes.NewReader(makeTar(t,
			directory("real"), link("link", "real", tar.TypeSymlink), regular("link/before", "1"), way, regular("link/after", "2"),
		)), dir, testUsage())
		if _, serr := os.Lstat(filepath.Join(dir, "real/after")); serr == nil {
			t.Errorf("a file below the new %q went to where the old link led", way.hdr.Name)
		}
		if isDir := way.hdr.Typeflag == tar.TypeDir; isDir != (err == nil) {
			t.Errorf("directory %v: got %v", isDir, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(makeTar(f, directory("d"), regular("d/f", "x"), link("s", "../../etc", tar.TypeSymlink), regular("s/x", "y")))
	f.Add(makeTar(f, regular(".wh.x", ""), link("h", "d", tar.TypeLink), regular("d/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "layer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpack(bytes.NewReader(data), dir, &usage{limits: Limits{MaxBytes: 1 << 20, MaxRatio: 10, MaxEntries: 100, MaxPathBytes: 300}})
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
			t.Fatalf("something was made beside the layer: %v %v", entries, err)
		}
		// Make it removable again whatever modes the entries had.
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}
