package erofs

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// TestAgainstMkfs: whiteouts and the rest mean what they mean to mkfs.erofs. What it does otherwise is not in this archive: a whiteout
// and a file of one name, symbolic links in the directory part of names, and files with holes.
func TestAgainstMkfs(t *testing.T) {
	if help, _ := exec.Command("mkfs.erofs", "--help").CombinedOutput(); !strings.Contains(string(help), "--mkfs-time") {
		needs.Optional(t, "mkfs.erofs is missing or older than 1.8.2, which Debian 12 does not have")
	}
	attrs := file("attrs", "y")
	attrs.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.a": "b"}
	owner := file("usr/owner", "x")
	owner.Uid, owner.Gid, owner.Mode = 70000, 80000, 0o4755
	device := other(tar.TypeChar, "device", "")
	device.Devmajor, device.Devminor = 1, 3
	stream := archive(t,
		other(tar.TypeDir, "./", ""), other(tar.TypeDir, "usr/", ""), file("usr/file", strings.Repeat("f", 10000)), file("usr/empty", ""), owner, attrs, device,
		other(tar.TypeSymlink, "link", "usr/file"), other(tar.TypeLink, "usr/hard", "usr/file"), other(tar.TypeFifo, "fifo", ""),
		file("usr/.wh.gone", ""), other(tar.TypeDir, "opaque/", ""), file("opaque/.wh..wh..opq", ""), file("opaque/new", "n"),
		file("twice", "1"), file("twice", "22"),
	)
	path := filepath.Join(t.TempDir(), "theirs")
	cmd := exec.Command("mkfs.erofs", "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", path)
	cmd.Stdin = bytes.NewReader(stream)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	theirs, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := build(t, stream, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, want := listing(t, mounted(t, ours)), listing(t, mounted(t, theirs))
	// Nobody sees the mode of a link and the time of a whiteout.
	want["/link"] = strings.Replace(want["/link"], "120755", "120777", 1)
	want["/usr/gone"] = strings.Replace(want["/usr/gone"], "at 1700000000.", "at 0.", 1)
	compare(t, got, want)
}
