package share

import (
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostKeepsItsMounts removes on the host what was mounted below a directory when it was shared: the kubelet does so all the time below
// a directory of which an agent on the node sees everything.
func TestHostKeepsItsMounts(t *testing.T) {
	needRoot(t)
	s := start(t, tempDir(t)+"/share")
	dir := tempDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for i, follow := range []bool{false, true} {
		below := filepath.Join(dir, "volume")
		put(t, below+"/file", "hidden")
		if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		put(t, below+"/x", "seen")
		name := []string{"private", "follow"}[i]
		if _, err := s.Bind(open(t, dir), name, BindOptions{Submounts: true, Follow: follow}); err != nil {
			t.Fatal(err)
		}
		if !exists(filepath.Join(s.dir, sharedDir, name, "volume/x")) {
			t.Errorf("%s: what is mounted below is not shared", name)
		}
		if err := unix.Unmount(below, 0); err != nil {
			t.Errorf("%s: unmounting it: %v", name, err)
		}
		if err := unix.Unlink(below + "/file"); err != nil {
			t.Error(err)
		}
		if err := unix.Rmdir(below); err != nil {
			t.Errorf("%s: removing what was mounted: %v", name, err)
			_ = s.Remove(name)
			_ = unix.Rmdir(below)
		}
	}
}

func exists(name string) bool { return unix.Access(name, unix.F_OK) == nil }

// TestSharesOfShares shares a directory that has shared directories in it, as a pod with the host's root directory does.
func TestSharesOfShares(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	s := start(t, dir+"/a/share")
	other := start(t, dir+"/b/share")
	volume := put(t, tempDir(t)+"/volume/file", "text")
	for _, sh := range []*Share{s, other} {
		if _, err := sh.Bind(open(t, filepath.Dir(volume)), "volume", BindOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		points, err := mountsBelow(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(points)
	}
	before := count()
	for i := range 4 {
		sh := []*Share{s, other}[i%2]
		if _, err := sh.Bind(open(t, dir), "all"+strconv.Itoa(i), BindOptions{Submounts: true, Follow: i > 1}); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(); got != before+4 {
		t.Errorf("%d mounts became %d by four more", before, got)
	}
}
