package share

import (
	"path/filepath"
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
