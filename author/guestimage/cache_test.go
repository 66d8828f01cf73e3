package guestimage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestKey(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"a", "b"}, {"ab"}, {"ab", ""}, {"b", "a"}, {"a\n1:b"}} {
		k := key(parts...)
		if other, dup := seen[k]; dup {
			t.Errorf("%q and %q have the same key", parts, other)
		}
		seen[k] = parts
	}
	if got := key("a", "b"); seen[got] == nil {
		t.Errorf("the key of the same inputs differs: %s", got)
	}
}

// TestImageKeyCoversInputs changes each input and expects another key.
func TestImageKeyCoversInputs(t *testing.T) {
	base := inputs{lock: goodLock(), goVersion: "go1", guest: "g", toolchain: "gcc", cmdline: "quiet",
		code: firmwareFile{"c", "1"}, vars: firmwareFile{"v", "2"}}
	seen := map[string]string{base.imageKey(): "nothing"}
	for name, change := range map[string]func(*inputs){
		"go version":      func(i *inputs) { i.goVersion = "go2" },
		"guest":           func(i *inputs) { i.guest = "h" },
		"toolchain":       func(i *inputs) { i.toolchain = "clang" },
		"command line":    func(i *inputs) { i.cmdline = "loud" },
		"firmware":        func(i *inputs) { i.code.sha256 = "9" },
		"firmware vars":   func(i *inputs) { i.vars.sha256 = "9" },
		"kernel digest":   func(i *inputs) { i.lock.Kernel.SHA256 = "9" },
		"kernel version":  func(i *inputs) { i.lock.Kernel.Version = "9" },
		"runc version":    func(i *inputs) { i.lock.Runc.Version = "9" },
		"runc module sum": func(i *inputs) { i.lock.Runc.Sum = "9" },
	} {
		in := base
		change(&in)
		if other, dup := seen[in.imageKey()]; dup {
			t.Errorf("changing %s gives the key of changing %s", name, other)
		}
		seen[in.imageKey()] = name
	}
}

func TestCacheGet(t *testing.T) {
	c := cache{t.TempDir()}
	fills := 0
	fill := func(dir string) error {
		fills++
		return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644)
	}
	boom := errors.New("boom")
	if _, _, err := c.get("thing", "k", func(dir string) error {
		if err := fill(dir); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if left, err := os.ReadDir(c.dir); err != nil || len(left) != 0 {
		t.Errorf("a failed fill leaves %v %v", left, err)
	}
	for i, wantCached := range []bool{false, true} {
		dir, cached, err := c.get("thing", "k", fill)
		if err != nil || cached != wantCached {
			t.Fatalf("get %d: cached %v, %v", i, cached, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
			t.Error(err)
		}
	}
	if fills != 2 {
		t.Errorf("filled %d times", fills)
	}
}

func TestCacheSweep(t *testing.T) {
	c := cache{t.TempDir()}
	for i, name := range []string{"image-1", "image-2", "image-3", "deb-1", ".new-image-dead"} {
		p := filepath.Join(c.dir, name)
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		when := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(p, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.sweep("image", 2); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"image-1": false, "image-2": true, "image-3": true, "deb-1": true, ".new-image-dead": false} {
		_, err := os.Stat(filepath.Join(c.dir, name))
		if (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

func TestCacheLock(t *testing.T) {
	c := cache{filepath.Join(t.TempDir(), "c")}
	release, err := c.lock(t.Context(), func() { t.Error("waited for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.lock(ctx, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("second builder: got %v, want the context's end", err)
	}
	waiting := make(chan struct{})
	got := make(chan error, 1)
	go func() {
		r, err := c.lock(t.Context(), func() { close(waiting) })
		if err == nil {
			r()
		}
		got <- err
	}()
	<-waiting
	release()
	if err := <-got; err != nil {
		t.Errorf("after release: %v", err)
	}
}
