package volume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
)

func TestEmptyDirs(t *testing.T) {
	w := newWorld(t)
	w.sandboxed(func(c *runtimeconfig.Config) { c.Storage.EmptyDir = runtimeconfig.EmptyDirPlain })
	base := "pods/" + uid + "/volumes/" + pluginEmptyDir + "/"
	memory, onDisk := w.mkdir(base+"mem"), w.mkdir(base+"disk")
	w.mount("tmpfs", memory, "tmpfs", 0, "size=8m")
	if err := os.Chown(memory, 0, 2000); err != nil {
		t.Fatal(err)
	}
	// The kubelet binds sub-paths.
	if err := os.MkdirAll(memory+"/in/ner", 0o770); err != nil {
		t.Fatal(err)
	}
	part := w.mkdir("pods/" + uid + "/volume-subpaths/mem/web/1")
	w.mount(memory+"/in/ner", part, "", unix.MS_BIND, "")
	part2 := w.mkdir("pods/" + uid + "/volume-subpaths/disk/web/2")
	w.mount(w.mkdir(base+"disk/a b"), part2, "", unix.MS_BIND, "")
	p := w.must(cid, bind(memory, "/mem"), bind(onDisk, "/disk"), bind(part, "/part"), bind(memory, "/dev/shm"), bind(part2, "/part2"))
	if got := p.Storages[0]; got.GetDriver() != "ephemeral" || got.GetMountPoint() != guestEphemeral+"/mem" ||
		!slices.Equal(got.GetOptions(), []string{"size=8388608", "fsgid=2000"}) {
		t.Errorf("%v", got)
	}
	d := p.Storages[1]
	if d.GetDriver() != "scsi" || d.GetSource() != "0:1" || d.GetMountPoint() != guestStorage+"/MDox" || !d.GetShared() || d.GetFstype() != "ext4" ||
		!slices.Equal(d.GetDriverOptions(), []string{"create_filesystem"}) || !slices.Equal(d.GetOptions(), []string{"discard"}) {
		t.Errorf("%v", d)
	}
	if p.Mounts[2].Source != guestEphemeral+"/mem/in/ner" || p.Storages[2].GetMountPoint() != p.Mounts[2].Source || len(p.Storages) != 4 {
		t.Errorf("%v %v", p.Mounts[2], p.Storages)
	}
	if st := p.Storages[3]; st.GetDriver() != "local" || st.GetMountPoint() != guestStorage+"/MDox/a b" || p.Mounts[4].Source != st.GetMountPoint() {
		t.Errorf("%v %v", st, p.Mounts[4])
	}
	if p.Mounts[3].Source != guestEphemeral+"/mem" {
		t.Errorf("/dev/shm is %v", p.Mounts[3])
	}
	images, _ := filepath.Glob(onDisk + "/cloister-*.img")
	if len(images) != 1 {
		t.Fatalf("disks: %v", images)
	}
	var st unix.Stat_t
	if err := unix.Stat(images[0], &st); err != nil || st.Size < minScratch || st.Blocks*512 > 1<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("%+v, %v", st, err)
	}
	// A second container, and a restart of the first, use the same disk.
	q := w.must("c2", bind(onDisk, "/d"))
	if len(w.plugged) != 1 || q.Storages[0].GetMountPoint() != d.GetMountPoint() {
		t.Errorf("%v %v", w.plugged, q.Storages)
	}
	for _, id := range []string{cid, "c2"} {
		if err := w.set.Release(w.ctx(), id); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.plugged) != 1 {
		t.Error("the pod's disk went with its container")
	}
	if err := w.set.Close(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(onDisk); len(left) != 1 || left[0].Name() != "a b" {
		t.Errorf("left: %v", left)
	}
}

func TestEmptyDirWithoutDisks(t *testing.T) {
	w := newWorld(t)
	w.confidential()
	onDisk := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir + "/disk")
	w.plugErr = errors.ErrUnsupported
	p := w.must(cid, bind(onDisk, "/disk"))
	st := p.Storages[1]
	if st.GetDriver() != "local" || st.GetMountPoint() != guestShared+"/"+sid+"/rootfs/local/disk" || p.Mounts[0].Source != st.GetMountPoint() {
		t.Errorf("%v", st)
	}
	w.plugErr = nil
	p = w.must("c2", bind(onDisk, "/disk"))
	if !slices.Equal(p.Storages[1].GetDriverOptions(), []string{"encryption_key=ephemeral", "create_filesystem"}) {
		t.Errorf("%v", p.Storages)
	}
	// Machines that are measured take disks that the guest encrypts, and no others.
	for _, d := range w.plugged {
		if !d.Sealed || d.Discard || d.ReadOnly {
			t.Errorf("%+v", d)
		}
	}
	if len(w.plugged) != 1 {
		t.Errorf("%d disks", len(w.plugged))
	}
	w.set.opts.Config.Storage.EmptyDir = runtimeconfig.EmptyDirGuest
	if p = w.must("c4", bind(w.mkdir("pods/"+uid+"/volumes/"+pluginEmptyDir+"/memory"), "/disk")); p.Storages[1].GetDriver() != "local" || len(w.plugged) != 1 {
		t.Errorf("%v %v", p.Storages, w.plugged)
	}
	w.set.opts.Config.Storage.EmptyDir = runtimeconfig.StorageAuto
	w.plugErr = errors.New("no more slots")
	other := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir + "/other")
	if _, err := w.container("c3", bind(other, "/disk")); !errors.Is(err, w.plugErr) {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(other); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
