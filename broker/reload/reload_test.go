package reload

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// world is a value read from one file, whose text "bad" is refused.
type world struct {
	*Watcher
	value *Value[string]
	file  string
	now   time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{file: filepath.Join(t.TempDir(), "f"), now: time.Unix(1000, 0)}
	write(t, w.file, "one")
	var err error
	w.value, err = NewValue(t.Context(), func(context.Context) (string, error) {
		text, err := os.ReadFile(w.file)
		if err == nil && string(text) == "bad" {
			err = errors.New("the text is bad")
		}
		return string(text), err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Watcher = New(slog.New(slog.DiscardHandler), func() time.Time { return w.now }, Item{What: "text", Files: []string{w.file}, Load: w.value.Reload})
	return w
}

func TestErrorsKeepTheOld(t *testing.T) {
	w := newWorld(t)
	if err := w.Check(t.Context()); err != nil || !w.Status()[0].Loaded.IsZero() {
		t.Fatalf("an unchanged file is read again: %v, %+v", err, w.Status())
	}
	write(t, w.file, "bad")
	for range 2 {
		if err := w.Check(t.Context()); err == nil {
			t.Fatal("a bad file is no error")
		}
		w.now = w.now.Add(time.Second)
	}
	s := w.Status()[0]
	if w.value.Get() != "one" || !strings.Contains(s.Error, "bad") || !s.Failed.Equal(time.Unix(1000, 0)) {
		t.Errorf("value %q, status %+v; want the old value and when it began to fail", w.value.Get(), s)
	}
	if n := testutil.ToFloat64(w.failures.WithLabelValues("text")); n != 2 {
		t.Errorf("%v failures are counted, want 2", n)
	}
	if err := os.Remove(w.file); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(t.Context()); err == nil || w.value.Get() != "one" {
		t.Errorf("a missing file: %v, value %q", err, w.value.Get())
	}
	write(t, w.file, "two")
	if err := w.Check(t.Context()); err != nil || w.value.Get() != "two" || w.Status()[0].Error != "" {
		t.Errorf("after the repair: %v, value %q, %+v", err, w.value.Get(), w.Status())
	}
}

// TestSameTimeAndSize changes a file so that its times and size tell nothing.
func TestSameTimeAndSize(t *testing.T) {
	w := newWorld(t)
	info, err := os.Stat(w.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w.file, "two")
	if err := os.Chtimes(w.file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(t.Context()); err != nil || w.value.Get() != "two" {
		t.Errorf("value %q, %v", w.value.Get(), err)
	}
}

// TestKubernetesSwap replaces a folder the way a kubelet does: by renaming one symbolic link.
func TestKubernetesSwap(t *testing.T) {
	dir := t.TempDir()
	generation := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "f"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..next")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	generation("..1", "one")
	if err := os.Symlink(filepath.Join("..data", "f"), filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	file, folder := look([]string{filepath.Join(dir, "f")}), look([]string{dir})
	generation("..2", "two")
	if look([]string{filepath.Join(dir, "f")}) == file || look([]string{dir}) == folder {
		t.Error("the swap is not noticed")
	}
	again := look([]string{dir})
	generation("..3", "two")
	if look([]string{dir}) != again {
		t.Error("a swap to the same content counts as a change")
	}
}

func TestLookIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	look([]string{dir, "/nonexistent", "https://keys.example"}) // ends
	if look([]string{"a", "bc"}) == look([]string{"ab", "c"}) {
		t.Error("names run into each other")
	}
}

func TestRunAndSignal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var loads atomic.Int32
	loaded := make(chan struct{}, 8)
	w := New(slog.New(slog.DiscardHandler), time.Now, Item{What: "x", Load: func(context.Context) error { loads.Add(1); loaded <- struct{}{}; return nil }})
	ticks, done := make(chan time.Time), make(chan struct{})
	hangups := Hangups(ctx)
	go func() { defer close(done); w.Run(ctx, ticks, hangups) }()
	ticks <- time.Time{}
	ticks <- time.Time{} // the round before it is over
	if n := loads.Load(); n != 0 {
		t.Errorf("a tick reads an unchanged item %d times", n)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-loaded:
	case <-time.After(10 * time.Second):
		t.Error("SIGHUP reads nothing")
	}
	cancel()
	<-done
}

func TestEvery(t *testing.T) {
	now, n := time.Unix(0, 0), 0
	w := New(slog.New(slog.DiscardHandler), func() time.Time { return now },
		Item{What: "keys", Files: []string{"https://keys.example"}, Every: time.Hour, Load: func(context.Context) error { n++; return nil }})
	for range 3 {
		now = now.Add(40 * time.Minute)
		if err := w.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("read %d times in two hours with attempts every 40 minutes, want 1", n)
	}
}
