package volume

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/internal/needs"
)

// blockDevice is a disk of this host; tests look at it, and never open it.
func blockDevice(t *testing.T) (node string, major, minor int64) {
	t.Helper()
	list, err := filepath.Glob("/sys/class/block/*/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		node := "/dev/" + filepath.Base(filepath.Dir(name))
		var st unix.Stat_t
		if unix.Lstat(node, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return node, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		}
	}
	needs.Missing(t, "a block device")
	return "", 0, 0
}

func TestBlockDevices(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	node, major, minor := blockDevice(t)
	spec := &specs.Spec{Root: &specs.Root{}, Annotations: map[string]string{"io.kubernetes.cri.image-name": "i"},
		Linux: &specs.Linux{
			Devices: []specs.LinuxDevice{{Path: "/dev/data", Type: "b", Major: major, Minor: minor}, {Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
				{Allow: false, Access: "rwm"}, {Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "r"}}},
		}}
	create := func(id string) (*Prepared, error) {
		return s.Container(w.ctx(), Request{ID: id, Spec: spec})
	}
	p, err := create(cid)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Devices) != 1 || p.Devices[0].GetContainerPath() != "/dev/data" || p.Devices[0].GetType() != "scsi" || p.Devices[0].GetId() != "0:1" {
		t.Errorf("%v", p.Devices)
	}
	if len(p.LinuxDevices) != 2 || p.LinuxDevices[0].Path != "/dev/data" {
		t.Errorf("%v", p.LinuxDevices)
	}
	for _, d := range w.plugged {
		if d.Path != node || !d.ReadOnly {
			t.Errorf("%+v", d)
		}
	}
	if err := s.Release(w.ctx(), cid); err != nil || len(w.plugged) != 0 {
		t.Errorf("%v %v", w.plugged, err)
	}
	// The same by hostPath.
	spec.Linux.Devices, spec.Mounts = nil, []specs.Mount{bind(node, "/dev/xvda")}
	if p, err = create(cid); err != nil || len(p.Mounts) != 0 || len(p.Devices) != 1 || p.LinuxDevices[0].Path != "/dev/xvda" {
		t.Errorf("%+v, %v", p, err)
	}
	spec.Mounts = []specs.Mount{bind(node, "/data")}
	if _, err := create("c2"); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("outside of /dev: %v", err)
	}
	// A device that is not there, one of a driver of the host, and all of them.
	spec.Mounts = nil
	for _, d := range []specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 4000, Minor: 1}, {Path: "/dev/x", Type: "b", Major: -1}, {Path: "/dev/nvidia0", Type: "c", Major: 240}} {
		spec.Linux.Devices = []specs.LinuxDevice{d}
		if _, err := create("c2"); err == nil {
			t.Errorf("%+v was given", d)
		}
	}
	spec.Linux.Devices = []specs.LinuxDevice{{Path: node, Type: "b", Major: major, Minor: minor}, {Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}
	spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	if p, err := create("c2"); err != nil || len(p.Devices)+len(p.LinuxDevices) != 0 {
		t.Errorf("a privileged container got %+v, %v", p, err)
	}
	if err := s.Release(w.ctx(), cid); err != nil {
		t.Fatal(err)
	}
	w.plugErr = errors.ErrUnsupported
	spec.Linux.Resources.Devices = nil
	if _, err := create("c4"); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without hot plug: %v", err)
	}
}

func TestBlockRoot(t *testing.T) {
	w := newWorld(t)
	s := w.sandboxed()
	image := w.put("image", "not looked at")
	root := func(id string, options ...string) (*Prepared, error) {
		return s.Container(w.ctx(), Request{ID: id, Spec: &specs.Spec{Root: &specs.Root{}}, Rootfs: []Mount{{Type: "ext4", Source: image, Options: options}}})
	}
	p, err := root(cid, "rw", "loop")
	if err != nil {
		t.Fatal(err)
	}
	st := p.Storages[0]
	if p.Root != "/run/kata-containers/"+cid+"/rootfs" || st.GetMountPoint() != p.Root || st.GetDriver() != "scsi" || st.GetFstype() != "ext4" ||
		!slices.Equal(st.GetOptions(), []string{"rw"}) {
		t.Errorf("%+v", p)
	}
	if err := s.Release(w.ctx(), cid); err != nil || len(w.plugged) != 0 {
		t.Errorf("%v, %v", w.plugged, err)
	}
	w.plugErr = errors.ErrUnsupported
	if _, err := root("c2", "loop"); !errors.Is(err, w.plugErr) {
		t.Errorf("an image file without disks: %v", err)
	}
}

func TestWithoutShare(t *testing.T) {
	w := newWorld(t)
	c := runtimeconfig.Default()
	c.Storage.SharedFS = runtimeconfig.SharedFSNone
	w.new(&c, nil)
	if _, err := w.container(cid); err == nil || !strings.Contains(err.Error(), "guest_pull") {
		t.Errorf("a root without a shared file system: %v", err)
	}
	c.Storage.GuestPull = true
	src := filepath.Dir(w.put("conf/f", "x"))
	p := w.must(cid, bind(src, "/conf", "ro"))
	w.want(w.seen(p.Mounts[0].Source)+"/f", "x")
	if _, err := w.container("c2", bind(src, "/conf")); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("a writable copy: %v", err)
	}
}

// TestDiskIsHeld has a guest that does not let go of a disk at first.
func TestDiskIsHeld(t *testing.T) {
	w := newWorld(t)
	s := w.sandboxed()
	create := func(id string) error {
		_, err := s.Container(w.ctx(), Request{ID: id, Spec: &specs.Spec{Root: &specs.Root{}}, Rootfs: []Mount{{Type: "ext4", Source: w.put("image", "")}}})
		return err
	}
	if err := create(cid); err != nil {
		t.Fatal(err)
	}
	w.unplugErr = errors.New("the guest does not let go of it")
	for range 2 {
		if err := s.Release(w.ctx(), cid); !errors.Is(err, w.unplugErr) {
			t.Errorf("a disk that the guest has was given back: %v", err)
		}
	}
	if err := create("c2"); err == nil || !strings.Contains(err.Error(), "being removed") {
		t.Errorf("a disk that is on its way out was given to another container: %v", err)
	}
	w.unplugErr = nil
	if err := s.Release(w.ctx(), cid); err != nil || len(w.plugged) != 0 {
		t.Errorf("%v, %v", w.plugged, err)
	}
	if err := create("c2"); err != nil {
		t.Error(err)
	}
}
