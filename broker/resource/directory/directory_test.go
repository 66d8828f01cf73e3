package directory

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

func path(t *testing.T, text string) resource.Path {
	t.Helper()
	p, err := resource.ParsePath(resource.SplitPath(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreServed(t *testing.T) {
	for layout, file := range map[string]string{"": "r/t/g.v1", LayoutTree: "r/t/g.v1", LayoutLocalFS: `r\x2Ft\x2Fg.v1`} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, file), "secret")
		b, err := New(Config{Dir: dir, Layout: layout})
		if err != nil {
			t.Fatal(err)
		}
		p := path(t, "r/t/g.v1")
		if got, err := b.Get(t.Context(), p); err != nil || string(got) != "secret" {
			t.Fatalf("%s: %q, %v", layout, got, err)
		}
		got, v, err := b.GetVersion(t.Context(), p, 1)
		if err != nil || string(got) != "secret" || v.Number != 1 || v.Size != 6 || v.Time.IsZero() {
			t.Fatalf("%q %+v, %v", got, v, err)
		}
		if list, err := b.Versions(t.Context(), p); err != nil || len(list) != 1 || list[0] != v {
			t.Fatalf("%+v, %v", list, err)
		}
		if _, _, err := b.GetVersion(t.Context(), p, 2); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("version 2: %v", err)
		}
		for _, name := range []string{"r/t/other", "r/other/g.v1", "other/t/g.v1", strings.Repeat("a", 256) + "/t/g",
			"r/t/" + strings.Repeat("a", 256)} {
			if _, err := b.Get(t.Context(), path(t, name)); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%.40s: %v", name, err)
			}
		}
		if err := b.Put(t.Context(), p, []byte("x")); !errors.Is(err, resource.ErrReadOnly) {
			t.Errorf("writing: %v", err)
		}
		if err := b.Delete(t.Context(), p); !errors.Is(err, resource.ErrReadOnly) {
			t.Errorf("deleting: %v", err)
		}
		write(t, filepath.Join(dir, file), "changed")
		if got, err := b.Get(t.Context(), p); err != nil || string(got) != "changed" {
			t.Errorf("after a change: %q, %v", got, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), p); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("without the directory: %v", err)
		}
	}
}

func TestOddFilesAreRefused(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "t", "g"), "OUTSIDE")
	write(t, filepath.Join(dir, "r/t/good"), "fine")
	link := func(to, name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(filepath.Join(outside, "t/g"), "r/t/absolute")
	link("good", "r/t/inside")
	link("nowhere", "r/t/dangling")
	link(outside, "out")
	link("r", "again")
	link("t", "r/kind")
	if err := os.Mkdir(filepath.Join(dir, "r/t/folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "r/t/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "r/file"), "x")
	write(t, filepath.Join(dir, "r/t/open"), "x")
	if err := os.Chmod(filepath.Join(dir, "r/t/open"), 0o666); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "r/loose/g"), "x")
	if err := os.Chmod(filepath.Join(dir, "r/loose"), 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "r/t/big"), "")
	if err := os.Truncate(filepath.Join(dir, "r/t/big"), resource.MaxSize+1); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(t.Context(), path(t, "r/t/good")); err != nil || string(got) != "fine" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, name := range []string{"r/t/absolute", "r/t/inside", "r/t/dangling", "out/t/g", "again/t/good", "r/kind/good", "r/t/folder",
		"r/t/pipe",
		"r/file/g", "r/t/open", "r/loose/g", "r/t/big"} {
		got, err := b.Get(t.Context(), path(t, name))
		if err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	loose := filepath.Join(dir, "loose")
	if err := os.Mkdir(loose, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(loose, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	write(t, file, "")
	for _, c := range []Config{{}, {Dir: "relative"}, {Dir: dir, Layout: "json"}, {Dir: filepath.Join(dir, "no")}, {Dir: file}, {Dir: loose}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
