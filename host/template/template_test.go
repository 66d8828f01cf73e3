package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func name(i int) string { return fmt.Sprintf("%032x", i) }

func write(_ context.Context, dir string, limit int64) error {
	if limit <= 0 {
		return errors.New("no room")
	}
	return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o600)
}

func TestMakeAndFind(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "templates"))
	if s.Find(name(1)) != "" {
		t.Fatal("found in nothing")
	}
	for range 2 {
		if err := s.Make(t.Context(), name(1), write); err != nil {
			t.Fatal(err)
		}
	}
	dir := s.Find(name(1))
	if text, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(text) != "whole" {
		t.Fatalf("%q: %q, %v", dir, text, err)
	}
	for _, bad := range []string{"", "x", "../" + name(1), strings.ToUpper("a" + name(1)[1:])} {
		if s.Find(bad) != "" || s.Make(t.Context(), bad, write) == nil || s.Failed(bad, os.ErrClosed) == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}

func TestFewAreKept(t *testing.T) {
	s := New(t.TempDir())
	if err := os.Chmod(s.root, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range most {
		if err := s.Make(t.Context(), name(i), write); err != nil {
			t.Fatal(err)
		}
		if err := s.Make(t.Context(), name(i), write); err != nil { // it is there
			t.Fatal(err)
		}
		old := time.Now().Add(time.Duration(i-2*most)*time.Minute - idle)
		if err := os.Chtimes(filepath.Join(s.root, name(i)), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if s.Find(name(0)) == "" { // now the one used last
		t.Fatal("not found")
	}
	if err := s.Make(t.Context(), name(99), write); err != nil {
		t.Fatal(err)
	}
	if s.Find(name(2)) == "" {
		t.Fatal("not found")
	}
	if err := s.Make(t.Context(), name(100), write); !errors.Is(err, ErrFull) {
		t.Errorf("one more than there may be, while all are used: %v", err)
	}
	for i, want := range map[int]bool{0: true, 1: false, 2: true, 99: true} {
		if got := s.Find(name(i)) != ""; got != want {
			t.Errorf("%d is there: %v", i, got)
		}
	}
}

func TestFailures(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "templates"))
	broken := errors.New("the guest does not come up")
	half := func(_ context.Context, dir string, _ int64) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), broken)
	}
	if err := s.Make(t.Context(), name(1), half); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := s.Make(t.Context(), name(1), write); !errors.Is(err, ErrFailed) || s.Find(name(1)) != "" {
		t.Fatalf("tried again: %v", err)
	}
	// One that is whole and cannot be used.
	if err := s.Make(t.Context(), name(2), write); err != nil {
		t.Fatal(err)
	}
	if err := s.Failed(name(2), broken); err != nil || s.Find(name(2)) != "" {
		t.Fatalf("%v, or it is still there", err)
	}
	// After a while both are tried again.
	old := time.Now().Add(-2 * again)
	for i := 1; i <= 2; i++ {
		if err := os.Chtimes(filepath.Join(s.root, name(i)+failSuffix), old, old); err != nil {
			t.Fatal(err)
		}
		if err := s.Make(t.Context(), name(i), write); err != nil || s.Find(name(i)) == "" {
			t.Fatal(err)
		}
	}
	// Who is stopped leaves no mark, and who was killed leaves something that the next one removes.
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Make(ctx, name(3), func(ctx context.Context, dir string, n int64) error {
		cancel()
		return errors.Join(half(ctx, dir, n), ctx.Err())
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	killed := filepath.Join(s.root, newPrefix+name(4))
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Make(t.Context(), name(3), write); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(s.root); err != nil || len(entries) != 4 { // with the lock
		t.Fatalf("left: %v, %v", entries, err)
	}
}

func TestOneAtATime(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "templates"))
	err := s.Make(t.Context(), name(1), func(ctx context.Context, dir string, n int64) error {
		if err := s.Make(ctx, name(2), write); !errors.Is(err, ErrBusy) {
			t.Errorf("two at a time: %v", err)
		}
		return write(ctx, dir, n)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOthersDirectories(t *testing.T) {
	s := New(t.TempDir())
	if err := os.Chmod(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Make(t.Context(), name(1), write); err == nil || !strings.Contains(err.Error(), "belongs to us alone") {
		t.Errorf("a directory for all: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.root, link); err != nil {
		t.Fatal(err)
	}
	if err := New(link).Make(t.Context(), name(1), write); err == nil {
		t.Error("followed a link")
	}
}
