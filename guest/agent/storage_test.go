package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

func volumes(t *testing.T) *Agent {
	t.Helper()
	a, base := copier(t)
	for _, dir := range []string{base, filepath.Join(a.cfg.Layout.Root, "sandbox")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestLocalStorage(t *testing.T) {
	a := volumes(t)
	dir := filepath.Join(a.cfg.Layout.Root, "shared/containers/sb/rootfs/local/vol")
	s := &agent.Storage{Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=0777"}, MountPoint: dir}
	keys, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s, s})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o777 {
		t.Fatalf("got %v, %v", info, err)
	}
	if st := a.storages[dir]; st == nil || st.refs != 2 {
		t.Fatalf("got %+v", st)
	}
	if err := a.releaseStorages(keys); err != nil || len(a.storages) != 0 {
		t.Fatalf("got %v, %v", err, a.storages)
	}
}

func TestStorageRefusals(t *testing.T) {
	a := volumes(t)
	root := a.cfg.Layout.Root
	if err := os.Symlink("/etc", filepath.Join(root, "shared/containers/link")); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*agent.Storage{
		"unknown driver":      {Driver: "virtio-fs", Source: "kataShared", MountPoint: root + "/shared/containers"},
		"block device":        {Driver: "blk", Source: "02/01", MountPoint: root + "/sandbox/x"},
		"outside":             {Driver: "local", MountPoint: "/tmp/x"},
		"traversal":           {Driver: "local", MountPoint: root + "/sandbox/../../x"},
		"relative":            {Driver: "local", MountPoint: "sandbox/x"},
		"symlink":             {Driver: "local", MountPoint: root + "/shared/containers/link/x"},
		"another container":   {Driver: "local", MountPoint: root + "/other/rootfs"},
		"image store":         {Driver: "ephemeral", Fstype: "tmpfs", MountPoint: root + "/image"},
		"shared ephemeral":    {Driver: "ephemeral", Fstype: "tmpfs", MountPoint: root + "/shared/containers/x"},
		"ephemeral type":      {Driver: "ephemeral", Fstype: "ext4", MountPoint: root + "/sandbox/x"},
		"ephemeral option":    {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=1,mode=4777"}, MountPoint: root + "/sandbox/x"},
		"ephemeral devices":   {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"dev"}, MountPoint: root + "/sandbox/x"},
		"bad mode":            {Driver: "local", Options: []string{"mode=9"}, MountPoint: root + "/sandbox/x"},
		"image of another":    {Driver: "image_guest_pull", Source: "r/i:1", MountPoint: root + "/c2/rootfs"},
		"image into a volume": {Driver: "image_guest_pull", Source: "r/i:1", MountPoint: root + "/sandbox/x"},
		"image without hub":   {Driver: "image_guest_pull", Source: "r/i:1", MountPoint: root + "/c1/rootfs"},
	} {
		if _, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if len(a.storages) != 0 {
		t.Errorf("left: %v", a.storages)
	}
}

// fakeImages makes a root file system without pulling anything.
type fakeImages struct {
	fail     error
	released []string
}

func (f *fakeImages) PullImage(_ context.Context, _, bundle string) (string, error) {
	if f.fail != nil {
		return "", f.fail
	}
	return "sha256:0", os.MkdirAll(bundle+"/rootfs", 0o755)
}

func (f *fakeImages) Release(bundle string) error {
	f.released = append(f.released, bundle)
	return nil
}

func TestImageStorage(t *testing.T) {
	a := volumes(t)
	images := &fakeImages{}
	a.cfg.Images, a.cfg.PullTimeout = images, 1e9
	bundle := filepath.Join(a.cfg.Layout.Root, "c1")
	s := &agent.Storage{Driver: "image_guest_pull", Source: "r/i:1", MountPoint: bundle + "/rootfs", DriverOptions: []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"container"}}`}}
	keys, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.releaseStorages(keys); err != nil || len(images.released) != 1 {
		t.Fatalf("got %v, %v", err, images.released)
	}
	images.fail = errors.New("the broker refused")
	if _, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s}); err == nil || !strings.Contains(err.Error(), "the broker refused") {
		t.Fatalf("got %v", err)
	}
}

func TestSandboxImage(t *testing.T) {
	for options, want := range map[string]bool{
		`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`:                                                             true,
		`image_guest_pull={"metadata":{"io.kubernetes.cri-o.ContainerType":"sandbox"}}`:                                                            true,
		`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"container"}}`:                                                           false,
		`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"container"},"METADATA":{"io.kubernetes.cri.container-type":"sandbox"}}`: false,
		`image_guest_pull={"Metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`:                                                             false,
		`image_guest_pull={}`: false,
		`other`:               false,
	} {
		if got, err := isSandboxImage(&agent.Storage{DriverOptions: []string{options}}); got != want || err != nil {
			t.Errorf("%s: %v, %v", options, got, err)
		}
	}
	// What the guest cannot read is not skipped: a policy may have read it, and the image called pause is one that the guest has itself.
	const honest = `image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`
	for _, option := range []string{
		`image_guest_pull={`, `image_guest_pull=null`, `image_guest_pull=[]`, `image_guest_pull={"metadata":[]}`,
		`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox","x":1}}`,
	} {
		if got, err := isSandboxImage(&agent.Storage{DriverOptions: []string{option, honest}}); err == nil {
			t.Errorf("%s: %v", option, got)
		}
	}
}

func TestEphemeralStorage(t *testing.T) {
	needs.Root(t, "mounts")
	a := volumes(t)
	dir := filepath.Join(a.cfg.Layout.Root, "sandbox/shm")
	s := &agent.Storage{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=65536", "fsgid=1234"}, MountPoint: dir}
	if _, err := a.addStorages(t.Context(), "", []*agent.Storage{s}); err != nil {
		if errors.Is(err, unix.EPERM) {
			needs.Missing(t, "the right to mount: %v", err)
		}
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Blocks*uint64(fs.Bsize) != 65536 || fs.Flags&unix.ST_NOEXEC == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Fatalf("got %+v, %v", fs, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Gid != 1234 || st.Mode&0o7777 != 0o3777 {
		t.Fatalf("gid %d, mode %o, %v", st.Gid, st.Mode, err)
	}
	s.Options = []string{"remount", "size=131072"}
	if _, err := a.UpdateEphemeralMounts(t.Context(), &agent.UpdateEphemeralMountsRequest{Storages: []*agent.Storage{s}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(dir, &fs); err != nil || fs.Blocks*uint64(fs.Bsize) != 131072 {
		t.Fatalf("got %+v, %v", fs, err)
	}
}

// TestEphemeralStorageStays uses a volume again after its last user has gone.
func TestEphemeralStorageStays(t *testing.T) {
	needs.Root(t, "mounts")
	a := volumes(t)
	dir := filepath.Join(a.cfg.Layout.Root, "sandbox/ephemeral/work")
	s := &agent.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: dir}
	keys, err := a.addStorages(t.Context(), "setup", []*agent.Storage{s})
	if errors.Is(err, unix.EPERM) {
		needs.Missing(t, "the right to mount: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil { // however many there are
		}
	}()
	if err := os.WriteFile(dir+"/made", []byte("by setup"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.releaseStorages(keys); err != nil {
		t.Fatal(err)
	}
	if _, err := a.addStorages(t.Context(), "web", []*agent.Storage{s}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/made"); err != nil || string(got) != "by setup" {
		t.Errorf("got %q, %v, expected what the container before has left", got, err)
	}
}

// fakeSecrets opens the text "sealed.good".
type fakeSecrets struct{}

func (fakeSecrets) UnsealSecret(_ context.Context, sealed []byte) ([]byte, error) {
	if string(sealed) != "sealed.good" {
		return nil, errors.New("the broker refused")
	}
	return []byte("pa=ss"), nil
}

func TestUnsealEnv(t *testing.T) {
	a := volumes(t)
	p := &agent.Process{Env: []string{"A=sealed.good", "B=plain", "C=unsealed.good"}}
	if err := a.unsealEnv(t.Context(), "c1", p); err == nil {
		t.Fatal("a sealed value without a hub was accepted")
	}
	a.cfg.Secrets, a.cfg.HubTimeout = fakeSecrets{}, 1e9
	if err := a.unsealEnv(t.Context(), "c1", p); err != nil || strings.Join(p.Env, " ") != "A=pa=ss B=plain C=unsealed.good" {
		t.Fatalf("got %v, %v", p.Env, err)
	}
	bad := &agent.Process{Env: []string{"D=sealed.bad"}}
	if err := a.unsealEnv(t.Context(), "c1", bad); err == nil || strings.Contains(err.Error(), "sealed.bad") {
		t.Fatalf("got %v", err)
	}
	if err := a.unsealEnv(t.Context(), "c1", nil); err != nil {
		t.Fatal(err)
	}
}

func TestCheckSandbox(t *testing.T) {
	for name, req := range map[string]*agent.CreateSandboxRequest{
		"id":       {SandboxId: "../x"},
		"hostname": {Hostname: "a\nb"},
		"hooks":    {GuestHookPath: "/hooks"},
		"modules":  {KernelModules: []*agent.KernelModule{{Name: "x"}}},
		"dns":      {Dns: []string{"nameserver 1.1.1.1\nnameserver 2.2.2.2"}},
	} {
		if err := checkSandbox(req); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := checkSandbox(&agent.CreateSandboxRequest{SandboxId: "sb1", Hostname: "pod", Dns: []string{"search x ", ""}}); err != nil {
		t.Error(err)
	}
}
