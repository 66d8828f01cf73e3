package guestimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func goodLock() Lock {
	return Lock{
		Kernel: KernelLock{
			Series: "6.12", Package: "linux-image-6.12.95+deb12-cloud-amd64", Version: "6.12.95-1~bpo12+1",
			Suite: "bookworm-backports", SHA256: strings.Repeat("ab", 32),
		},
		Runc: RuncLock{Version: "v1.5.2", Sum: "h1:eUUowc2WJCnFYzI87C1WqRcu356Dk/wsoi90y+2wEfE="},
	}
}

func TestLockRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest.lock")
	want := goodLock()
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := LoadLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("scratch files stay behind: %v %v", left, err)
	}
}

func TestLockRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Lock)
		want   string
	}{
		"option as version": {func(l *Lock) { l.Kernel.Version = "-oDir=/" }, "kernel.version"},
		"shell in package":  {func(l *Lock) { l.Kernel.Package = "linux-image-6.12;id" }, "kernel.package"},
		"other package":     {func(l *Lock) { l.Kernel.Package = "bash" }, "kernel.package"},
		"path as suite":     {func(l *Lock) { l.Kernel.Suite = "../../x" }, "kernel.suite"},
		"short digest":      {func(l *Lock) { l.Kernel.SHA256 = "abcd" }, "kernel.sha256"},
		"no series":         {func(l *Lock) { l.Kernel.Series = "" }, "kernel.series"},
		"branch of runc":    {func(l *Lock) { l.Runc.Version = "main" }, "runc.version"},
		"no hash of runc":   {func(l *Lock) { l.Runc.Sum = "" }, "runc.sum"},
	} {
		t.Run(name, func(t *testing.T) {
			l := goodLock()
			c.change(&l)
			err := l.Validate()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %s", err, c.want)
			}
			path := filepath.Join(t.TempDir(), "l")
			if l.Save(path) == nil {
				t.Error("a faulty lock was written")
			}
		})
	}
	l := goodLock()
	text, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseLock(append(text, "colour = 'red'\n"...)); err == nil || !strings.Contains(err.Error(), "colour") {
		t.Errorf("unknown key: got %v", err)
	}
	if _, err := ParseLock(make([]byte, maxLockSize+1)); err == nil {
		t.Error("an oversized lock was read")
	}
}

func FuzzParseLock(f *testing.F) {
	l := goodLock()
	text, err := l.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := ParseLock(data); err == nil {
			if err := l.Validate(); err != nil {
				t.Errorf("accepted a faulty lock: %v", err)
			}
		}
	})
}

// TestRepositoryLock keeps the committed lock readable.
func TestRepositoryLock(t *testing.T) {
	if _, err := LoadLock("../../guest.lock"); err != nil {
		t.Fatal(err)
	}
}
