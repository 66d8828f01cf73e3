package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

const (
	uid = "2f1c9a52-7b0e-4d1c-9a56-0c8f3f4f9d10"
	sid = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
	cid = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0"
)

// world is a host with a pod's directory as the kubelet makes it, and what a guest would have got.
type world struct {
	t     *testing.T
	dir   string
	pod   string
	guest string // stands for the guest's shared directory
	share *share.Share
	set   *Set

	mu        sync.Mutex
	plugged   map[string]vmm.Disk // by serial
	plugErr   error
	unplugErr error
	noVMDK    bool
	noSealed  error
	sent      []string
	sendErr   error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cloister-volume")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, pod: dir + "/pods/" + uid, guest: dir + "/guest", plugged: map[string]vmm.Disk{}}
	t.Cleanup(func() {
		if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), dir) {
			t.Errorf("mounts are left below %s", dir)
			return // not deleting through them
		}
		os.RemoveAll(dir)
	})
	for _, d := range []string{w.pod, w.guest} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// confidential makes the set of a confidential sandbox, sandboxed that of one that shares.
func (w *world) confidential() *Set {
	c := runtimeconfig.Default()
	c.Sandbox.TEE = "snp"
	return w.new(&c, w)
}

// scratch makes the set of a confidential sandbox whose containers write to disks.
func (w *world) scratch(disks vmm.Plug, size int64) *Set {
	w.t.Helper()
	c := runtimeconfig.Default()
	c.Sandbox.TEE = "tpm"
	s := w.new(&c, disks)
	s.opts.ScratchSize = size
	return s
}

func (w *world) sandboxed(change ...func(*runtimeconfig.Config)) *Set {
	w.t.Helper()
	w.needRoot()
	if _, err := share.Find(""); err != nil {
		needs.Missing(w.t, "%v", err)
	}
	sh, err := share.Start(w.ctx(), share.Config{Dir: w.dir + "/share"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := sh.Close(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	w.share = sh
	c := runtimeconfig.Default()
	for _, f := range change {
		f(&c)
	}
	return w.new(&c, w)
}

func (w *world) new(c *runtimeconfig.Config, disks vmm.Plug) *Set {
	w.t.Helper()
	s, err := New(Options{Dir: w.dir + "/volumes", SandboxID: sid, Config: c, Share: w.share, Disks: disks, CopyFile: w.copyFile, DirectDir: w.dir + "/direct"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.set = s
	w.t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			w.t.Error(err)
		}
		if _, err := os.Lstat(w.dir + "/volumes"); !errors.Is(err, fs.ErrNotExist) {
			w.t.Errorf("the directory is left: %v", err)
		}
	})
	return s
}

func (w *world) needRoot() {
	w.t.Helper()
	needs.Root(w.t, "mounts and owners")
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// container prepares a container with mounts.
func (w *world) container(id string, mounts ...specs.Mount) (*Prepared, error) {
	spec := &specs.Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: mounts, Linux: &specs.Linux{}, Annotations: map[string]string{
		"io.kubernetes.cri.image-name": "registry.example/web:1", "io.kubernetes.cri.sandbox-uid": uid}}
	return w.set.Container(w.ctx(), Request{ID: id, Bundle: w.dir, Spec: spec, Rootfs: []Mount{{Type: "bind", Source: w.mkdir("root"), Options: []string{"rbind"}}}})
}

func (w *world) must(id string, mounts ...specs.Mount) *Prepared {
	w.t.Helper()
	p, err := w.container(id, mounts...)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) mkdir(name string) string {
	w.t.Helper()
	p := filepath.Join(w.dir, name)
	if err := os.MkdirAll(p, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) put(name, content string) string {
	w.t.Helper()
	p := filepath.Join(w.dir, name)
	w.mkdir(filepath.Dir(name))
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// publish writes a volume as the kubelet does, and returns its path.
func (w *world) publish(plugin, name string, files map[string]string) string {
	w.t.Helper()
	p := path.Join("pods", uid, "volumes", plugin, name)
	dir := w.mkdir(p)
	old, _ := os.Readlink(dir + "/..data")
	stamp := fmt.Sprintf("..2026_%d", time.Now().UnixNano())
	for n, c := range files {
		w.put(path.Join(p, stamp, n), c)
	}
	check := func(err error) {
		w.t.Helper()
		if err != nil && !errors.Is(err, fs.ErrExist) {
			w.t.Fatal(err)
		}
	}
	check(os.Symlink(stamp, dir+"/..data_tmp"))
	check(os.Rename(dir+"/..data_tmp", dir+"/..data"))
	for n := range files {
		first, _, _ := strings.Cut(n, "/")
		check(os.Symlink("..data/"+first, dir+"/"+first))
	}
	if old != "" {
		check(os.RemoveAll(dir + "/" + old))
	}
	return dir
}

func (w *world) mount(source, target, fstype string, flags uintptr, data string) {
	w.t.Helper()
	w.needRoot()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// copyFile is the guest's side: files below the shared directory.
func (w *world) copyFile(_ context.Context, r *agent.CopyFileRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sendErr != nil {
		return w.sendErr
	}
	rel, ok := strings.CutPrefix(r.GetPath(), guestShared+"/")
	if !ok || len(r.GetData()) > 1<<20 {
		return fmt.Errorf("request for %s of %d bytes", r.GetPath(), len(r.GetData()))
	}
	w.sent = append(w.sent, rel)
	p := filepath.Join(w.guest, rel)
	switch r.GetFileMode() & unix.S_IFMT {
	case unix.S_IFDIR:
		return os.MkdirAll(p, 0o755)
	case unix.S_IFLNK:
		if err := os.Symlink(string(r.GetData()), p+".tmp"); err != nil {
			return err
		}
		return os.Rename(p+".tmp", p)
	case unix.S_IFREG:
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if r.GetOffset() == 0 {
			if err := f.Truncate(r.GetFileSize()); err != nil {
				return err
			}
		}
		_, err = f.WriteAt(r.GetData(), r.GetOffset())
		return err
	}
	return fmt.Errorf("file mode %#o", r.GetFileMode())
}

// seen is a path of the guest on this host.
func (w *world) seen(guestPath string) string {
	w.t.Helper()
	rel, ok := strings.CutPrefix(guestPath, guestShared+"/")
	if !ok {
		w.t.Fatalf("%s is not in the shared directory", guestPath)
	}
	if w.share != nil {
		return filepath.Join(w.dir, "share/shared", rel)
	}
	return filepath.Join(w.guest, rel)
}

func (w *world) want(name, content string) {
	w.t.Helper()
	if b, err := os.ReadFile(name); err != nil || string(b) != content {
		w.t.Errorf("%s holds %.100q, %v; want %.100q", name, b, err, content)
	}
}

func (w *world) AddDisk(_ context.Context, d vmm.Disk) (vmm.Place, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.plugErr != nil {
		return vmm.Place{}, w.plugErr
	}
	if w.noSealed != nil && d.Sealed {
		return vmm.Place{}, w.noSealed
	}
	if w.noVMDK && d.Format != vmm.FormatRaw {
		return vmm.Place{}, errors.ErrUnsupported
	}
	if _, ok := w.plugged[d.Serial]; ok || len(d.Serial) > 20 {
		return vmm.Place{}, fmt.Errorf("serial %q", d.Serial)
	}
	w.plugged[d.Serial] = d
	return vmm.Place{Driver: "scsi", Address: fmt.Sprintf("0:%d", len(w.plugged))}, nil
}

func (w *world) RemoveDisk(_ context.Context, serial string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unplugErr != nil {
		return w.unplugErr
	}
	if _, ok := w.plugged[serial]; !ok {
		return fmt.Errorf("no disk %s", serial)
	}
	delete(w.plugged, serial)
	return nil
}

func (w *world) AddNIC(context.Context, vmm.NIC) (vmm.Place, error) {
	return vmm.Place{}, errors.ErrUnsupported
}
func (w *world) RemoveNIC(context.Context, string) error { return errors.ErrUnsupported }
func (w *world) Resize(context.Context, int, int) (int, int, error) {
	return 0, 0, errors.ErrUnsupported
}

func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// killer ends the process when a disk is plugged.
type killer struct{ *world }

func (killer) AddDisk(context.Context, vmm.Disk) (vmm.Place, error) {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	return vmm.Place{}, nil
}
