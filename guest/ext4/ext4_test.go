package ext4

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

var (
	testUUID = [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}
	testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// TestCheck has e2fsck look at file systems of many sizes, on disks that are empty and on disks full of something else.
func TestCheck(t *testing.T) {
	fsck := needs.Program(t, "e2fsck")
	const mib = 1 << 20
	for _, size := range []int64{mib, 8 * mib, 8*mib + 12345, 64 * mib, 128 * mib, 128*mib + 4096, 128*mib + 300*4096, 128*mib + 3*mib, 129 * mib, 1000 * mib, 10 << 30, 16 << 30, 17 << 30, 200 << 30, 1 << 40} {
		file := filepath.Join(t.TempDir(), "disk")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if size <= 64*mib {
			if _, err := f.Write(bytes.Repeat([]byte{0xa5}, int(size))); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(size), Format(f, size, testUUID, testTime), f.Close()); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		out, err := exec.Command(fsck, "-f", "-n", file).CombinedOutput()
		if err != nil {
			t.Errorf("%d bytes: %v\n%s", size, err, out)
		}
		os.Remove(file)
	}
}

// TestMount has the kernel use one.
func TestMount(t *testing.T) {
	needs.Root(t, "mounts")
	dir := t.TempDir()
	file, target := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	const size = 300 << 20
	if err := errors.Join(f.Truncate(size), Format(f, size, testUUID, testTime), f.Close(), os.Mkdir(target, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,noinit_itable", file, target).CombinedOutput(); err != nil {
		needs.Missing(t, "loop mounts of ext4: %v %s", err, out)
	}
	unmount := func() error { return exec.Command("umount", target).Run() }
	data := bytes.Repeat([]byte("some data "), 1<<20)
	for _, name := range []string{"a", "b/c/d", "lost+found/x"} {
		p := filepath.Join(target, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644)); err != nil {
			t.Error(err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(target, "b", strings.Repeat("n", 60)+string(rune('a'+i%26))+time.Duration(i).String()), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-f", "-n", file).CombinedOutput(); err != nil {
		t.Errorf("after use: %v\n%s", err, out)
	}
}

// counter counts what is written.
type counter struct{ bytes int64 }

func (c *counter) WriteAt(p []byte, _ int64) (int, error) {
	c.bytes += int64(len(p))
	return len(p), nil
}

func TestLazyAndDeterministic(t *testing.T) {
	c := &counter{}
	if err := Format(c, 1<<40, testUUID, testTime); err != nil || c.bytes > 1<<20 {
		t.Errorf("%d bytes written for 1 TiB: %v", c.bytes, err)
	}
	var sums [2]bytes.Buffer
	for i := range sums {
		if err := Format(appender{&sums[i]}, 1<<30, testUUID, testTime); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(sums[0].Bytes(), sums[1].Bytes()) {
		t.Error("the same arguments gave two file systems")
	}
	for _, size := range []int64{-1, 0, MinSize - 1, MaxSize + 1, 1 << 62} {
		if err := Format(c, size, testUUID, testTime); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	want := errors.New("disk is gone")
	if err := Format(failing{want}, 1<<30, testUUID, testTime); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

type appender struct{ w io.Writer }

func (a appender) WriteAt(p []byte, _ int64) (int, error) { return a.w.Write(p) }

type failing struct{ err error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }
