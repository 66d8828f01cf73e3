package snapshotter

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// readTar reads what was written into dir, and fails the test when that takes too long.
func readTar(t *testing.T, dir string) ([]byte, error) {
	t.Helper()
	stream := tarOf(t.Context(), dir)
	defer stream.Close()
	type result struct {
		raw []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		raw, err := io.ReadAll(stream)
		done <- result{raw, err}
	}()
	select {
	case r := <-done:
		return r.raw, r.err
	case <-time.After(20 * time.Second):
		t.Fatal("reading what was written hangs")
		return nil, nil
	}
}

// swap exchanges two files of a directory over and over, as a running container can, while f runs.
func swap(t *testing.T, a, b string, f func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				done <- err
				return
			}
		}
	}()
	f()
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

const secret = "a secret of the host"

// TestSwappedDirectory: a container that puts a link to a directory of the host into the place of one of its own, while its snapshot is
// read, does not get the host's files into the layer, nor are they counted.
func TestSwappedDirectory(t *testing.T) {
	host, upper := t.TempDir(), t.TempDir()
	own, link := filepath.Join(upper, "own"), filepath.Join(upper, "zlink")
	for _, err := range []error{
		os.WriteFile(filepath.Join(host, "shadow"), []byte(secret), 0o600), os.Mkdir(own, 0o755),
		os.WriteFile(filepath.Join(own, "shadow"), make([]byte, len(secret)), 0o600), os.Symlink(host, link),
		os.WriteFile(filepath.Join(host, "large"), make([]byte, 1<<20), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	swap(t, own, link, func() {
		whole := 0
		for range 3000 {
			raw, err := readTar(t, upper)
			if bytes.Contains(raw, []byte(secret)) {
				t.Error("a file of the host is in the layer")
				return
			}
			if err == nil {
				whole++
			}
			usage, err := diskUsage(t.Context(), upper)
			if err != nil || usage.Size >= 1<<20 {
				t.Errorf("the snapshot takes %d bytes, %v", usage.Size, err)
				return
			}
		}
		if whole == 0 {
			t.Error("not one layer was made")
		}
	})
}

// TestSwappedPipe: nor does one that puts a pipe into the place of a file or directory stop the snapshotter.
func TestSwappedPipe(t *testing.T) {
	upper := t.TempDir()
	pipe := filepath.Join(upper, "pipe")
	file, dir := filepath.Join(upper, "file"), filepath.Join(upper, "dir")
	for _, err := range []error{unix.Mkfifo(pipe, 0o600), os.WriteFile(file, []byte("x"), 0o600), os.Mkdir(dir, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{file, dir} {
		swap(t, other, pipe, func() {
			for range 2000 {
				if _, err := readTar(t, upper); err != nil {
					t.Error(err)
					return
				}
				if _, err := diskUsage(t.Context(), upper); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
}

// TestWritten: a layer has what was written, with its attributes, and says what is gone.
func TestWritten(t *testing.T) {
	needs.Root(t, "devices and trusted attributes")
	upper := t.TempDir()
	at := func(name string) string { return filepath.Join(upper, name) }
	for i, err := range []error{
		os.Mkdir(at("d"), 0o750), os.WriteFile(at("d/f"), []byte("content"), 0o640), os.Link(at("d/f"), at("d/g")),
		os.Symlink("/etc/shadow", at("l")), unix.Mkfifo(at("p"), 0o600), unix.Mknod(at("gone"), unix.S_IFCHR, 0),
		unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(at("d"), opaqueXattr, []byte("y"), 0), unix.Setxattr(at("d/f"), "trusted.file", []byte("a"), 0),
		unix.Lsetxattr(at("l"), "trusted.link", []byte("b"), 0), unix.Lsetxattr(at("null"), "trusted.device", []byte("c"), 0),
		unix.Setxattr(at("p"), "trusted.pipe", []byte("d"), 0),
	} {
		if err != nil {
			t.Fatal(i, err)
		}
	}
	raw, err := readTar(t, upper)
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		kind                byte
		link, body, records string
	}
	want := map[string]entry{
		"./": {kind: tar.TypeDir}, "d/": {kind: tar.TypeDir}, "d/.wh..wh..opq": {kind: tar.TypeReg},
		"d/f": {kind: tar.TypeReg, body: "content", records: "trusted.file=a"}, "d/g": {kind: tar.TypeLink, link: "d/f"},
		"l": {kind: tar.TypeSymlink, link: "/etc/shadow", records: "trusted.link=b"}, "p": {kind: tar.TypeFifo, records: "trusted.pipe=d"},
		".wh.gone": {kind: tar.TypeReg}, "null": {kind: tar.TypeChar, records: "trusted.device=c"},
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got := entry{kind: h.Typeflag, link: h.Linkname, body: string(body)}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				got.records += name + "=" + v
			}
		}
		if w, ok := want[h.Name]; !ok || got != w {
			t.Errorf("%s: got %+v, want %+v (%v)", h.Name, got, w, ok)
		}
		delete(want, h.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// TestDeepUpper: directories deeper than a path can be are an error, not all of the process's descriptors.
func TestDeepUpper(t *testing.T) {
	upper := t.TempDir()
	fd, err := unix.Open(upper, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2100 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		if fd = next; err != nil {
			t.Fatal(err)
		}
	}
	_ = unix.Close(fd)
	if _, err := readTar(t, upper); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("got %v", err)
	}
	if _, err := diskUsage(t.Context(), upper); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("got %v", err)
	}
}
