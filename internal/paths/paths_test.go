package paths

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestPrivateMakesAndTightens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := Private(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Private(dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode = %o, want 700", got)
	}
}

func TestPrivateRefuses(t *testing.T) {
	base := t.TempDir()
	link := filepath.Join(base, "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{link, file} {
		if err := Private(dir); err == nil {
			t.Errorf("Private(%s) accepted it", filepath.Base(dir))
		}
	}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(base, "foreign")
		if err := os.Mkdir(foreign, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(foreign, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := Private(foreign); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
			t.Errorf("Private on a foreign directory: %v", err)
		}
	}
}

func TestRunDirFallsBackAndIsShort(t *testing.T) {
	base := t.TempDir()
	blocked := filepath.Join(base, "run")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := runBase(os.Geteuid(), blocked, base)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got, filepath.Join(base, "cloister-")) {
		t.Errorf("run base = %s", got)
	}
	d := At("/home/someone/.cloister", "/tmp/cloister-4294967295")
	if sock := filepath.Join(d.Run, strings.Repeat("p", 63), "ctl.sock"); len(sock) > 107 {
		t.Errorf("socket path %s has %d bytes", sock, len(sock))
	}
	if At("/a", "/r").Run == At("/b", "/r").Run {
		t.Error("two homes share one run directory")
	}
}

func TestHomeDir(t *testing.T) {
	got, err := homeDir("", func() (string, error) { return "/home/u", nil })
	if err != nil || got != "/home/u/.cloister" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := homeDir("", func() (string, error) { return "", errors.New("none") }); err == nil {
		t.Error("no home directory was accepted")
	}
	if got, _ := homeDir("/x/../y", nil); got != "/y" {
		t.Errorf("got %q", got)
	}
}

func TestWriteFileKeepsOldContentOnFailure(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := WriteFile(name, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "missing", "f"), nil, 0o600); err == nil {
		t.Error("writing into a missing directory succeeded")
	}
	if err := WriteFile(name, []byte("two"), 0o640); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(name)
	entries, _ := os.ReadDir(dir)
	if string(b) != "two" || len(entries) != 1 {
		t.Errorf("content %q, %d entries", b, len(entries))
	}
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	l, err := TryLock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(name); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := WaitLock(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	l.Unlock()
	l, err = WaitLock(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	l.Unlock()
}

func TestOpenRegular(t *testing.T) {
	dir := t.TempDir()
	pipe, plain := filepath.Join(dir, "pipe"), filepath.Join(dir, "plain")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{pipe, dir, "/dev/null", filepath.Join(dir, "none")} {
		if f, err := OpenRegular(bad); err == nil {
			f.Close()
			t.Errorf("%s was opened", bad)
		}
	}
	f, err := OpenRegular(plain)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
