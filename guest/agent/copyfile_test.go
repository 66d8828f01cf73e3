package agent

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

// copier is an agent whose pod directory is a temporary one, and that directory.
func copier(t *testing.T) (*Agent, string) {
	t.Helper()
	layout := DefaultLayout()
	layout.Root = t.TempDir()
	return New(Config{Gate: &recordingGate{allow: true}, Log: discard(), Layout: layout}), filepath.Join(layout.Root, "shared/containers")
}

func request(path string, mode uint32, data string) *agent.CopyFileRequest {
	return &agent.CopyFileRequest{
		Path: path, FileMode: mode, DirMode: unix.S_IFDIR | 0o750, Data: []byte(data), FileSize: int64(len(data)),
		Uid: int32(os.Getuid()), Gid: int32(os.Getgid()),
	}
}

func TestCopyFile(t *testing.T) {
	a, base := copier(t)
	copyOK := func(req *agent.CopyFileRequest) {
		t.Helper()
		if _, err := a.CopyFile(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	copyOK(request(base+"/vol", unix.S_IFDIR|0o755, ""))
	copyOK(request(base+"/vol/..2026/key", unix.S_IFREG|0o640, "value"))
	copyOK(request(base+"/vol/..data", unix.S_IFLNK|0o777, "..2026"))
	copyOK(request(base+"/vol/key", unix.S_IFLNK|0o777, "..data/key"))
	sizeless := request(base+"/vol/alias", unix.S_IFLNK|0o777, "key")
	sizeless.FileSize = 0
	copyOK(sizeless)
	for _, name := range []string{"key", "alias"} {
		if got, err := os.ReadFile(base + "/vol/" + name); err != nil || string(got) != "value" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if info, err := os.Stat(base + "/vol/..2026/key"); err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("got %v, %v", info, err)
	}
	// A new value replaces the old one, and directories survive a repetition.
	copyOK(request(base+"/vol/..2026/key", unix.S_IFREG|0o600, "new"))
	copyOK(request(base+"/vol", unix.S_IFDIR|0o700, ""))
	if got, _ := os.ReadFile(base + "/vol/key"); string(got) != "new" {
		t.Fatalf("got %q", got)
	}
}

func TestCopyFileInPieces(t *testing.T) {
	a, base := copier(t)
	text := strings.Repeat("0123456789", 1000)
	for off := 0; off < len(text); off += 4096 {
		if _, err := os.Stat(base + "/f.txt"); err == nil {
			t.Fatal("an incomplete file is visible")
		}
		req := request(base+"/f.txt", unix.S_IFREG|0o644, text[off:min(off+4096, len(text))])
		req.FileSize, req.Offset = int64(len(text)), int64(off)
		if _, err := a.CopyFile(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(base + "/f.txt"); err != nil || string(got) != text {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
		t.Fatalf("the temporary file is left: %v, %v", entries, err)
	}
}

// TestCopyFilesWithOneStem copies files whose names differ only in their ends, in both orders and at the same time.
func TestCopyFilesWithOneStem(t *testing.T) {
	a, base := copier(t)
	names := []string{"tls.tmp", "tls.crt", "tls.key", "tls"}
	for round := range 50 {
		var copies sync.WaitGroup
		for _, name := range names {
			one := func() {
				if _, err := a.CopyFile(t.Context(), request(base+"/"+name, unix.S_IFREG|0o644, name)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if round == 0 {
				one()
			} else {
				copies.Go(one)
			}
		}
		copies.Wait()
		for _, name := range names {
			if got, err := os.ReadFile(base + "/" + name); err != nil || string(got) != name {
				t.Fatalf("round %d: %s holds %q, %v", round, name, got, err)
			}
		}
	}
}

// TestCopyFileEscapes tries to write outside the directory.
func TestCopyFileEscapes(t *testing.T) {
	a, base := copier(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": outside, "up": "../../..", "file": victim, temporaryName("sub.conf"): victim} {
		if _, err := a.CopyFile(t.Context(), request(base+"/"+name, unix.S_IFLNK|0o777, target)); err != nil {
			t.Fatal(err)
		}
	}
	rel, err := filepath.Rel(base, victim)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		victim, base, base + "/", base + "/../x", base + "/a/../../x", base + "/" + rel, "/etc/passwd", "", "relative",
		base + "x/f", base + "/abs/victim", base + "/abs/new", base + "/up/new", base + "//x", base + "/a\x00b",
	} {
		for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
			if _, err := a.CopyFile(t.Context(), request(path, mode, "evil")); err == nil {
				t.Errorf("%q with mode %o was accepted", path, mode)
			}
		}
	}
	// A symlink in place of the file, or of its temporary name, is replaced and not followed.
	for _, name := range []string{"file", "sub.conf"} {
		if _, err := a.CopyFile(t.Context(), request(base+"/"+name, unix.S_IFREG|0o644, "evil")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A later piece must not go through a symlink either.
	if _, err := a.CopyFile(t.Context(), request(base+"/"+temporaryName("late.conf"), unix.S_IFLNK|0o777, victim)); err != nil {
		t.Fatal(err)
	}
	late := request(base+"/late.conf", unix.S_IFREG|0o644, "evil")
	late.Offset, late.FileSize = 4, 8
	if _, err := a.CopyFile(t.Context(), late); err == nil {
		t.Error("a piece went through a symlink")
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
	if got, _ := os.ReadFile(victim); string(got) != "safe" {
		t.Errorf("the victim was changed to %q", got)
	}
}

func TestCopyFileRefusesNonsense(t *testing.T) {
	a, base := copier(t)
	for name, change := range map[string]func(*agent.CopyFileRequest){
		"device":          func(r *agent.CopyFileRequest) { r.FileMode = unix.S_IFCHR | 0o600 },
		"fifo":            func(r *agent.CopyFileRequest) { r.FileMode = unix.S_IFIFO | 0o600 },
		"negative size":   func(r *agent.CopyFileRequest) { r.FileSize = -1 },
		"negative offset": func(r *agent.CopyFileRequest) { r.Offset = -1 },
		"offset overflow": func(r *agent.CopyFileRequest) { r.Offset = 1<<63 - 1 },
		"too much data":   func(r *agent.CopyFileRequest) { r.FileSize = 1 },
		"huge":            func(r *agent.CopyFileRequest) { r.FileSize = 1 << 40 },
		"negative owner":  func(r *agent.CopyFileRequest) { r.Uid = -5 },
		"link elsewhere":  func(r *agent.CopyFileRequest) { r.FileMode, r.FileSize, r.Offset = unix.S_IFLNK, 0, 4 },
		"empty link":      func(r *agent.CopyFileRequest) { r.FileMode, r.Data = unix.S_IFLNK, nil },
	} {
		req := request(base+"/f", unix.S_IFREG|0o644, "data")
		change(req)
		if _, err := a.CopyFile(t.Context(), req); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestFailedCopyLeavesTheOldFile copies a file once more, wrongly and incompletely.
func TestFailedCopyLeavesTheOldFile(t *testing.T) {
	a, base := copier(t)
	old := base + "/vol/f"
	if _, err := a.CopyFile(t.Context(), request(old, unix.S_IFREG|0o644, "bound")); err != nil {
		t.Fatal(err)
	}
	piece := func(offset, size int64, data string) *agent.CopyFileRequest {
		r := request(old, unix.S_IFREG|0o644, data)
		r.Offset, r.FileSize = offset, size
		return r
	}
	for _, tc := range []struct {
		name string
		req  *agent.CopyFileRequest
		ok   bool
		left int // files in the volume
	}{
		{"no piece before", piece(5, 8, "end"), false, 1},
		{"the first piece", piece(0, 8, "new"), true, 2},
		{"a piece too far", piece(5, 8, "end"), false, 1},
		{"the first piece again", piece(0, 8, "new"), true, 2},
		{"another size", piece(2, 2, ""), false, 1},
		{"a file as a directory", request(old+"/g", unix.S_IFREG|0o644, "x"), false, 1},
	} {
		if _, err := a.CopyFile(t.Context(), tc.req); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got, err := os.ReadFile(old); err != nil || string(got) != "bound" {
			t.Errorf("%s: the old file is %q, %v", tc.name, got, err)
		}
		if entries, err := os.ReadDir(base + "/vol"); err != nil || len(entries) != tc.left {
			t.Errorf("%s: there are %v, %v", tc.name, entries, err)
		}
	}
}

// TestCopyFileStaysInItsVolume writes through links that lead to another volume, or to the volume from elsewhere.
func TestCopyFileStaysInItsVolume(t *testing.T) {
	a, base := copier(t)
	for _, r := range []*agent.CopyFileRequest{
		request(base+"/bound/key", unix.S_IFREG|0o644, "bound"), request(base+"/free/dir/own", unix.S_IFREG|0o644, "own"),
		request(base+"/free/up", unix.S_IFLNK|0o777, "../bound"), request(base+"/alias", unix.S_IFLNK|0o777, "bound"), request(base+"/free/in", unix.S_IFLNK|0o777, "dir"),
	} {
		if _, err := a.CopyFile(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"/free/up/key", "/alias/key", "/alias/new", "/free/up/new"} {
		for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
			if _, err := a.CopyFile(t.Context(), request(base+p, mode, "evil")); err == nil {
				t.Errorf("%s with mode %o was written", p, mode)
			}
		}
	}
	if _, err := a.CopyFile(t.Context(), request(base+"/free/in/own", unix.S_IFREG|0o644, "new")); err != nil {
		t.Error(err)
	}
	for p, want := range map[string]string{"/bound/key": "bound", "/free/dir/own": "new"} {
		if got, err := os.ReadFile(base + p); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	if entries, err := os.ReadDir(base + "/bound"); err != nil || len(entries) != 1 {
		t.Errorf("in the bound volume: %v, %v", entries, err)
	}
}

func FuzzCopyFilePath(f *testing.F) {
	for _, s := range []string{"a", "../a", "a/../../b", "a//b", ".", "..", "a\x00", "link/x"} {
		f.Add(s, uint32(unix.S_IFREG|0o644))
	}
	f.Fuzz(func(t *testing.T, rel string, mode uint32) {
		a, base := copier(t)
		outside := filepath.Join(a.cfg.Layout.Root, "outside")
		if err := os.MkdirAll(outside, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := a.CopyFile(t.Context(), request(base+"/link", unix.S_IFLNK|0o777, outside)); err != nil {
			t.Fatal(err)
		}
		_, _ = a.CopyFile(t.Context(), request(base+"/"+rel, mode, "x"))
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) > 0 {
			t.Fatalf("%q wrote outside: %v, %v", rel, entries, err)
		}
		for _, e := range []string{"shared", "outside"} {
			if _, err := os.Stat(filepath.Join(a.cfg.Layout.Root, e)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestCopyFileSparesMounts puts a file in the place of a directory in which another volume is mounted.
func TestCopyFileSparesMounts(t *testing.T) {
	needs.Root(t, "mounts")
	a, base := copier(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"mount", "dir/deep/mount"} {
		if err := os.MkdirAll(filepath.Join(base, at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(volume, filepath.Join(base, at), "", unix.MS_BIND, ""); err != nil {
			needs.Missing(t, "the right to mount: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(base, at), unix.MNT_DETACH) })
	}
	for _, name := range []string{"/mount", "/dir"} {
		for _, mode := range []uint32{unix.S_IFREG, unix.S_IFLNK} {
			if _, err := a.CopyFile(t.Context(), request(base+name, mode|0o644, "x")); err == nil {
				t.Errorf("%s was replaced by a file of type %#o", name, mode)
			}
		}
	}
	if got, err := os.ReadFile(filepath.Join(volume, "file")); string(got) != "precious" {
		t.Errorf("the volume's file: %q, %v", got, err)
	}
}
