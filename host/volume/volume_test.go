package volume

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
)

func TestKubeletPath(t *testing.T) {
	pod := "/var/lib/kubelet/pods/" + uid
	for p, want := range map[string]*kubelet{
		pod + "/volumes/kubernetes.io~secret/s":                     {kind: kubeVolume, plugin: pluginSecret, name: "s"},
		pod + "/volumes/kubernetes.io~csi/pvc/mount":                {kind: kubeVolume, plugin: "kubernetes.io~csi", name: "pvc"},
		pod + "/volume-subpaths/v/c/0":                              {kind: kubeSubPath, name: "v"},
		pod + "/etc-hosts":                                          {kind: kubeHosts},
		pod + "/containers/c/8f3e":                                  {kind: kubeLog},
		pod + "/volumes":                                            nil,
		pod + "/etc-hosts/x":                                        nil,
		pod + "/plugins/x":                                          nil,
		"/var/lib/kubelet/pods/short/volumes/a/b":                   nil,
		"/etc/hosts":                                                nil,
		strings.Replace(pod, uid[:8], "00000000", 1) + "/etc-hosts": nil, // of another pod
	} {
		got := kubeletPath(p, uid)
		switch {
		case (got == nil) != (want == nil):
			t.Errorf("%s: %+v, want %+v", p, got, want)
		case got != nil && (got.kind != want.kind || got.plugin != want.plugin || got.name != want.name):
			t.Errorf("%s: %+v, want %+v", p, got, want)
		}
	}
}

func TestShmSize(t *testing.T) {
	shm := func(m specs.Mount) *specs.Spec {
		m.Destination = "/dev/shm"
		return &specs.Spec{Mounts: []specs.Mount{m}}
	}
	for _, c := range []struct {
		spec *specs.Spec
		want uint64
	}{
		{&specs.Spec{}, 64 << 20},
		{shm(specs.Mount{Type: "tmpfs", Options: []string{"nosuid", "size=65536k"}}), 64 << 20},
		{shm(specs.Mount{Type: "tmpfs", Options: []string{"size=1g"}}), 1 << 30},
		{shm(specs.Mount{Type: "tmpfs", Options: []string{"size=99999999999g"}}), 0},
		{shm(specs.Mount{Type: "tmpfs", Options: []string{"size=-1"}}), 0},
	} {
		got, err := shmSize(c.spec)
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%v: %d, %v", c.spec.Mounts, got, err)
		}
	}
}

func TestConfidentialRoot(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	p := w.must(cid)
	st := p.Storages[0]
	if p.Root != "/run/kata-containers/"+cid+"/rootfs" || st.GetMountPoint() != p.Root || st.GetSource() != "registry.example/web:1" || st.GetFstype() != "overlay" ||
		st.GetDriver() != "image_guest_pull" || len(st.GetDriverOptions()) != 1 ||
		st.GetDriverOptions()[0] != `image_guest_pull={"metadata":{"io.kubernetes.cri.image-name":"registry.example/web:1","io.kubernetes.cri.sandbox-uid":"`+uid+`"}}` {
		t.Errorf("%+v", p)
	}
	spec := &specs.Spec{Root: &specs.Root{Readonly: true}}
	p, err := s.Container(w.ctx(), Request{ID: sid, Sandbox: true, Spec: spec})
	if err != nil || p.Storages[0].GetSource() != "pause" || !p.RootReadonly {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := s.Container(w.ctx(), Request{ID: "x", Spec: spec}); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without an image: %v", err)
	}
	list, err := s.Sandbox(nil)
	if err != nil || len(list) != 1 || list[0].GetMountPoint() != guestShm || !slices.Equal(list[0].GetOptions(), []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}) {
		t.Errorf("%v, %v", list, err)
	}
}

func TestVirtualVolume(t *testing.T) {
	option := func(text string) []Mount {
		return []Mount{{Options: []string{kataVolume + base64.StdEncoding.EncodeToString([]byte(text))}}}
	}
	v, err := findVirtualVolume(option(`{"volume_type":"image_guest_pull","source":"i","image_pull":{"metadata":{"a":"b"}}}`))
	if err != nil || v == nil || v.Pull.Metadata["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range [][]Mount{option(`{"volume_type":"image_nydus_fs"}`), option(`{`), {{Options: []string{kataVolume + "!"}}}} {
		if _, err := findVirtualVolume(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// TestPublishedCopies follows a ConfigMap through its life in a confidential pod.
func TestPublishedCopies(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	big := strings.Repeat("0123456789abcdef", 160<<10) // 2.5 MiB: three pieces
	src := w.publish(pluginConfigMap, "cm", map[string]string{"a": "1", "sub/b": "2", "big": big, "empty": ""})
	if err := unix.Mkfifo(src+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": "/etc/passwd", "up": "../../x", "sneaky": "a/../../x"} {
		if err := os.Symlink(target, src+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	p := w.must(cid, bind(src, "/etc/my config", "ro"))
	m := p.Mounts[0]
	if !regexp.MustCompile(`^/run/kata-containers/shared/containers/[a-z0-9]{64}-[a-z0-9]{16}-my config$`).MatchString(m.Source) ||
		!slices.Equal(m.Options, []string{"rbind", "rprivate", "ro"}) {
		t.Errorf("%+v", m)
	}
	at := w.seen(m.Source)
	w.want(at+"/a", "1")
	w.want(at+"/sub/b", "2")
	w.want(at+"/big", big)
	w.want(at+"/empty", "")
	for _, name := range []string{"pipe", "abs", "up", "sneaky"} {
		if _, err := os.Lstat(at + "/" + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was copied: %v", name, err)
		}
	}
	first, _ := os.Readlink(at + "/..data")
	w.mu.Lock()
	w.sent = nil
	w.mu.Unlock()
	w.publish(pluginConfigMap, "cm", map[string]string{"a": "11", "new": "3"})
	ctx := w.ctx()
	for b := []byte(nil); string(b) != "3"; time.Sleep(5 * time.Millisecond) {
		if b, _ = os.ReadFile(at + "/new"); ctx.Err() != nil {
			t.Fatal("the change did not arrive")
		}
	}
	w.want(at+"/a", "11")
	if now, _ := os.Readlink(at + "/..data"); now == first {
		t.Error("..data is the old one")
	}
	w.mu.Lock()
	sent := slices.Clone(w.sent)
	w.mu.Unlock()
	base := path.Base(m.Source)
	data, link := slices.Index(sent, base+"/..data"), slices.Index(sent, base+"/new")
	lastFile := slices.IndexFunc(sent, func(s string) bool { return strings.Contains(s, "/..2026_") && strings.HasSuffix(s, "/new") })
	if lastFile > data || data > link || lastFile < 0 || link < 0 {
		t.Errorf("order of the copies: %q", sent)
	}
	if err := s.Release(w.ctx(), cid); err != nil {
		t.Fatal(err)
	}
	w.must(cid, bind(src, "/etc/x", "ro"))
}

func TestCopyFailures(t *testing.T) {
	w := newWorld(t)
	w.confidential()
	src := w.publish(pluginSecret, "s", map[string]string{"a": "1"})
	w.sendErr = errors.New("CopyFileRequest is blocked by policy")
	if _, err := w.container(cid, bind(src, "/s", "ro")); !errors.Is(err, w.sendErr) {
		t.Errorf("a refused copy: %v", err)
	}
	w.sendErr = nil
	w.must(cid, bind(src, "/s", "ro")) // nothing of the failure is left
	large := w.publish(pluginSecret, "large", nil)
	if err := os.Truncate(w.put("pods/"+uid+"/volumes/"+pluginSecret+"/large/f", ""), maxCopied+1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.container("c2", bind(large, "/l", "ro")); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("a large volume: %v", err)
	}
	deep := "pods/" + uid + "/volumes/" + pluginSecret + "/deep"
	w.mkdir(deep + strings.Repeat("/d", maxDepth+2))
	if _, err := w.container("c3", bind(filepath.Join(w.dir, deep), "/l", "ro")); err == nil {
		t.Error("a deep volume was copied")
	}
}

func TestConfidentialRefusals(t *testing.T) {
	w := newWorld(t)
	w.confidential()
	pod := "pods/" + uid
	for _, src := range []string{w.mkdir("data"), w.put("file", "x"), w.mkdir(pod + "/volumes/kubernetes.io~csi/pvc/mount"), "/dev/null", "/proc", "relative", "/no/such"} {
		_, err := w.container(cid, bind(src, "/data"))
		if err == nil {
			t.Errorf("%s was mounted", src)
		}
		if strings.HasPrefix(src, w.dir) && !strings.Contains(err.Error(), "hint: ") {
			t.Errorf("%s: %v", src, err)
		}
	}
	hosts := w.put(pod+"/etc-hosts", "127.0.0.1 localhost\n")
	log := w.put(pod+"/containers/web/0a1b2c3d", "")
	resolv := w.put("sandboxes/x/resolv.conf", "nameserver 10.0.0.1\n")
	w.publish(pluginConfigMap, "cm", map[string]string{"k": "v"})
	part := w.put(pod+"/volume-subpaths/cm/web/0", "v")
	p := w.must(cid, bind(hosts, "/etc/hosts"), bind(log, "/dev/termination-log"), bind(resolv, "/etc/resolv.conf"), bind(part, "/k"),
		specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"}, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"size=1m"}})
	w.want(w.seen(p.Mounts[0].Source), "127.0.0.1 localhost\n")
	w.want(w.seen(p.Mounts[2].Source), "nameserver 10.0.0.1\n")
	w.want(w.seen(p.Mounts[3].Source), "v")
	if p.Mounts[4].Type != "proc" || p.Mounts[5].Source != guestShm || p.Mounts[5].Type != "bind" {
		t.Errorf("%+v", p.Mounts)
	}
	if got, ok := w.set.TerminationLog(cid); !ok || got != log {
		t.Errorf("termination log: %q, %v", got, ok)
	}
	// What has taken the name of the log since is not written to.
	if err := os.Rename(log, log+".old"); err != nil {
		t.Fatal(err)
	}
	victim := w.put("victim", "keep")
	if err := os.Symlink(victim, log); err != nil {
		t.Fatal(err)
	}
	if err := w.set.WriteTerminationLog(cid, []byte("it ended")); err != nil {
		t.Fatal(err)
	}
	w.want(victim, "keep")
	w.want(log+".old", "it ended")
}

// TestHostileLinks: a container that can write into a volume makes links for the next one.
func TestHostileLinks(t *testing.T) {
	w := newWorld(t)
	w.confidential()
	secret := w.put("host-secret/f", "secret")
	vol := w.mkdir("pods/" + uid + "/volumes/" + pluginProjected + "/v")
	for name, target := range map[string]string{"..data": filepath.Dir(secret), "dir": filepath.Dir(secret), "f": secret} {
		if err := os.Symlink(target, vol+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	p := w.must(cid, bind(vol, "/v", "ro"))
	_ = filepath.WalkDir(w.seen(p.Mounts[0].Source), func(name string, d os.DirEntry, _ error) error {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s got out", name)
		}
		return nil
	})
	// The volume itself, or a directory on the way, as a link.
	link := "pods/" + uid + "/volumes/" + pluginSecret
	w.mkdir(path.Dir(link))
	if err := os.Symlink(filepath.Dir(secret), filepath.Join(w.dir, link)); err != nil {
		t.Fatal(err)
	}
	w.mkdir("host-secret/v")
	for _, src := range []string{link + "/v", link + "/f"} {
		if _, err := w.container("c2", bind(filepath.Join(w.dir, src), "/v", "ro")); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestShared(t *testing.T) {
	w := newWorld(t)
	w.sandboxed()
	cm := w.publish(pluginConfigMap, "cm", map[string]string{"a": "1"})
	empty := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir + "/e")
	log := w.put("pods/"+uid+"/containers/web/0a1b2c3d", "")
	p := w.must(cid, bind(cm, "/cm", "ro"), bind(empty, "/e", "rw"), bind(log, "/dev/termination-log", "rw"), bind(w.put("hp/f", "h"), "/hp", "rro", "rslave"))
	if p.Root != guestShared+"/"+cid+"/rootfs" || len(p.Storages) != 0 {
		t.Errorf("%+v", p)
	}
	at := func(i int) string { return w.seen(p.Mounts[i].Source) }
	w.want(at(0)+"/a", "1")
	w.publish(pluginConfigMap, "cm", map[string]string{"a": "2"})
	w.want(at(0)+"/a", "2")
	if err := os.WriteFile(at(0)+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a read-only volume: %v", err)
	}
	if err := os.WriteFile(at(1)+"/x", []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	w.want(empty+"/x", "x")
	if err := os.WriteFile(at(2), []byte("bye"), 0o600); err != nil {
		t.Error(err)
	}
	w.want(log, "bye")
	if _, ok := w.set.TerminationLog(cid); ok {
		t.Error("a shared log needs no copy")
	}
	if !slices.Contains(p.Mounts[3].Options, "ro") || slices.Contains(p.Mounts[3].Options, "rro") {
		t.Errorf("%+v", p.Mounts[3])
	}
	if where, ok := w.set.GuestPath(cm); !ok || where != p.Mounts[0].Source {
		t.Errorf("%q, %v", where, ok)
	}
	for _, bad := range []string{"/proc/self", "/sys", "/dev/null"} {
		if _, err := w.container("c2", bind(bad, "/x")); err == nil || !strings.Contains(err.Error(), "hint: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	w.must("c2", bind(cm, "/cm")) // nothing is left of the failures
	for _, id := range []string{cid, "c2", "none"} {
		if err := w.set.Release(w.ctx(), id); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(w.dir + "/share/names"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	w.want(empty+"/x", "x")
	list, err := w.set.Sandbox(nil)
	if err != nil || len(list) != 2 || list[0].GetSource() != "kataShared" {
		t.Errorf("%v, %v", list, err)
	}
}

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
	p := w.must(cid, bind(memory, "/mem"), bind(onDisk, "/disk"), bind(part, "/part"), bind(memory, "/dev/shm"))
	if got := p.Storages[0]; got.GetDriver() != "ephemeral" || got.GetMountPoint() != guestEphemeral+"/mem" ||
		!slices.Equal(got.GetOptions(), []string{"size=8388608", "fsgid=2000"}) {
		t.Errorf("%v", got)
	}
	d := p.Storages[1]
	if d.GetDriver() != "scsi" || d.GetSource() != "0:1" || d.GetMountPoint() != guestStorage+"/MDox" || !d.GetShared() || d.GetFstype() != "ext4" ||
		!slices.Equal(d.GetDriverOptions(), []string{"create_filesystem"}) || !slices.Equal(d.GetOptions(), []string{"discard"}) {
		t.Errorf("%v", d)
	}
	if p.Mounts[2].Source != guestEphemeral+"/mem/in/ner" || p.Storages[2].GetMountPoint() != p.Mounts[2].Source || len(p.Storages) != 3 {
		t.Errorf("%v %v", p.Mounts[2], p.Storages)
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
	if left, _ := os.ReadDir(onDisk); len(left) > 0 {
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
	w.plugErr = errors.New("no more slots")
	other := w.mkdir("pods/" + uid + "/volumes/" + pluginEmptyDir + "/other")
	if _, err := w.container("c3", bind(other, "/disk")); !errors.Is(err, w.plugErr) {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(other); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

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
	t.Skip("no block device")
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
