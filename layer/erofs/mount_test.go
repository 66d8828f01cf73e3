package erofs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is one entry of a tar of a test.
type entry struct {
	tar.Header
	content string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}, content}
}

func other(kind byte, name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: target, ModTime: time.Unix(1600000000, 0)}, ""}
}

// listing describes everything below a directory, as far as a file system can tell.
func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	list := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d links %d", st.Mode, st.Uid, st.Gid, st.Nlink)
		if name != "" { // directories that the test makes have times of their own
			text += fmt.Sprintf(" at %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d bytes %x", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first := inodes[st.Ino]; first != "" {
				text += " same as " + first
			} else {
				inodes[st.Ino] = name
			}
		}
		attrs, err := attributes(path)
		if err != nil {
			return err
		}
		list[name] = text + attrs
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func attributes(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", fmt.Errorf("listing attributes of %s: %w", path, err)
	}
	text := ""
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		text += fmt.Sprintf(" %s=%q", name, buf[:n])
	}
	return text, nil
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%.100s:\n got %.600s\nwant %.600s", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%.100s is there, want nothing", name)
		}
	}
}

// extracted unpacks a tar with GNU tar.
func extracted(t *testing.T, stream []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-x", "-p", "--delay-directory-restore", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-C", dir)
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return dir
}

func TestAgainstTar(t *testing.T) {
	long := strings.Repeat("long-name-", 25)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	owner := file("owner", "x")
	owner.Uid, owner.Gid, owner.Mode = 70000, 4_000_000_000, 0o6711
	precise := file("precise", "x")
	precise.ModTime, precise.Format = time.Unix(1700000000, 123456789), tar.FormatPAX
	old := file("old", "x")
	old.ModTime, old.Format = time.Unix(-86400*365*30, 0), tar.FormatPAX
	attrs := file("attrs", "y")
	attrs.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.a": "one\x00two",
		"SCHILY.xattr.user.long": strings.Repeat("v", 3000), "SCHILY.xattr.trusted.t": ""}
	sticky := other(tar.TypeDir, "sticky/", "")
	sticky.Mode = 0o1777
	device := other(tar.TypeChar, "dev-c", "")
	device.Devmajor, device.Devminor, device.Mode = 10, 200, 0o600
	disk := other(tar.TypeBlock, "dev-b", "")
	disk.Devmajor, disk.Devminor = 259, 70000
	entries := []entry{
		sticky,
		other(tar.TypeDir, "bin/", ""), file("bin/tool", strings.Repeat("#", 4096)), file("bin/empty", ""), file("bin/large", strings.Repeat("data ", 300000)),
		owner, precise, old, attrs,
		other(tar.TypeSymlink, "link", "bin/tool"), other(tar.TypeSymlink, "link-long", strings.Repeat("a/", 2000)), other(tar.TypeSymlink, "link-4032", strings.Repeat("a", 4032)),
		other(tar.TypeSymlink, "link-4033", strings.Repeat("a", 4033)), other(tar.TypeLink, "bin/tool-again", "bin/tool"), other(tar.TypeLink, "link-again", "link"),
		other(tar.TypeFifo, "fifo", ""), device, disk,
		other(tar.TypeDir, long, ""), file(long+"/"+long, "deep"), file("\xff\xfe name \x01", "bytes"), file("!", "before the dot"), file("~", ""),
		file("replaced", "first"), file("replaced", "second"),
		file("holes", strings.Repeat("\x00", 1<<20)+"x"), file("all-holes", strings.Repeat("\x00", 200000)),
		file("holes-within", "x"+strings.Repeat("\x00", 3<<16)+"y"+strings.Repeat("\x00", 1<<16)+"z"),
	}
	for n := range 3000 { // many blocks of a directory
		entries = append(entries, file(fmt.Sprintf("many/entry-%05d", n*7919%3000), strings.Repeat("z", n)))
	}
	many := other(tar.TypeDir, "many/", "")
	stream := archive(t, append([]entry{many}, entries...)...)
	image, err := build(t, stream, Options{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, listing(t, mounted(t, image)), listing(t, extracted(t, stream)))
}
