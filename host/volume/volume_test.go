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

// TestOldSandbox: containerd 1.6 gives a sandbox two mounts at /dev/shm, and fewer options of resolv.conf; policies want what newer ones give.
func TestOldSandbox(t *testing.T) {
	w := newWorld(t)
	s := w.confidential()
	resolv := w.put("sandboxes/x/resolv.conf", "nameserver 10.0.0.1\n")
	spec := &specs.Spec{Root: &specs.Root{Path: "rootfs"}, Linux: &specs.Linux{}, Mounts: []specs.Mount{
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "size=65536k"}},
		{Destination: "/dev/shm", Type: "bind", Source: w.mkdir("sandboxes/x/shm"), Options: []string{"rbind", "ro"}},
		{Destination: "/etc/resolv.conf", Type: "bind", Source: resolv, Options: []string{"rbind", "ro"}},
	}}
	p, err := s.Container(w.ctx(), Request{ID: sid, Sandbox: true, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Mounts) != 2 || p.Mounts[0].Source != guestShm {
		t.Fatalf("%+v", p.Mounts)
	}
	if got := p.Mounts[1].Options; !slices.Equal(got, []string{"rbind", "ro", "nosuid", "nodev", "noexec"}) {
		t.Errorf("options of resolv.conf: %q", got)
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
	if got, ok := w.set.TerminationLog(cid); !ok || got != log || p.TerminationLog != "/dev/termination-log" {
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

// TestReadOnlyAbove is a volume of which only the directory itself is read-only, and one with all that is mounted below.
func TestReadOnlyAbove(t *testing.T) {
	w := newWorld(t)
	w.sandboxed()
	dir, plain := w.mkdir("hp"), w.mkdir("plain")
	below := w.mkdir("hp/below")
	if err := unix.Mount("t", below, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	p := w.must(cid, bind(dir, "/ro", "rbind", "ro"), bind(dir, "/rro", "rbind", "rro"), bind(plain, "/plain", "rbind", "ro"),
		bind(plain, "/follows", "rbind", "rslave", "ro"))
	for i, want := range []struct {
		guest bool  // the guest holds it, too
		below error // of writing below
	}{{false, nil}, {true, unix.EROFS}, {true, nil}, {false, nil}} {
		m := p.Mounts[i]
		if got := slices.Contains(m.Options, "ro"); got != want.guest {
			t.Errorf("%s: %q", m.Destination, m.Options)
		}
		at := w.seen(m.Source)
		if err := os.WriteFile(at+"/file", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: writing gives %v", m.Destination, err)
		}
		if i > 1 {
			continue
		}
		if err := os.WriteFile(at+"/below/file", nil, 0o600); !errors.Is(err, want.below) {
			t.Errorf("%s: writing below gives %v", m.Destination, err)
		}
	}
	if err := w.set.Release(w.ctx(), cid); err != nil {
		t.Error(err)
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
	for _, bad := range []string{"/proc/self", "/sys", "/dev/null", "/dev"} {
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
