package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

type noModules struct{}

func (noModules) Load(...string) error { return nil }

// hostVolumes is an agent with a policy.
func hostVolumes(t *testing.T, policy string) *Agent {
	t.Helper()
	a := volumes(t)
	engine, err := gate.New("package agent_policy\n"+policy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a.cfg.Gate, a.cfg.Modules, a.log = engine, noModules{}, slog.New(slog.DiscardHandler)
	a.cfg.Devices = &device.Finder{Sys: t.TempDir(), Dev: t.TempDir(), Timeout: 30 * time.Millisecond}
	return a
}

// TestHostStorageNeedsPolicy asks for what the host can read and change.
func TestHostStorageNeedsPolicy(t *testing.T) {
	for name, policy := range map[string]string{"without the rule": "default CreateContainerRequest := true\n", "no": "default HostStorageRequest := false\n"} {
		a := hostVolumes(t, policy)
		root := a.cfg.Layout.Root
		for _, s := range []*agent.Storage{
			{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", MountPoint: root + "/shared/containers/"},
			{Driver: "blk", Source: "02", Fstype: "ext4", MountPoint: root + "/sandbox/v"},
			{Driver: "scsi", Source: "0:1", Fstype: "ext4", MountPoint: root + "/sandbox/v", DriverOptions: []string{"create_filesystem"}},
			{Driver: "mmioblk", Source: "/dev/vda", Fstype: "erofs", MountPoint: root + "/sandbox/v", Options: []string{"ro"}},
		} {
			_, err := a.addStorages(t.Context(), "", []*agent.Storage{s})
			var denied *gate.DeniedError
			var internal *gate.InternalError
			if !errors.As(err, &denied) && !errors.As(err, &internal) {
				t.Errorf("%s: %s: %v", name, s.GetDriver(), err)
			}
		}
		if _, err := a.findDevices(t.Context(), []*agent.Device{{Type: "blk", Id: "02", ContainerPath: "/dev/x"}}); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: device: %v", name, err)
		}
		// A disk that the guest encrypts needs no such rule; this one never comes.
		s := &agent.Storage{Driver: "blk", Source: "02", Fstype: "ext4", MountPoint: root + "/sandbox/v", DriverOptions: []string{"create_filesystem", "encryption_key=ephemeral"}}
		if _, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: encrypted: %v", name, err)
		}
	}
	a := hostVolumes(t, `HostStorageRequest { input.driver == "blk"; input.source == "02" }`)
	s := &agent.Storage{Driver: "blk", Source: "02", Fstype: "ext4", MountPoint: a.cfg.Layout.Root + "/sandbox/v"}
	if _, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("allowed by the policy: %v", err)
	}
}

func TestBlockOptions(t *testing.T) {
	a := hostVolumes(t, "default HostStorageRequest := true\n")
	for name, s := range map[string]*agent.Storage{
		"file system":          {Fstype: "btrfs"},
		"option":               {Fstype: "ext4", Options: []string{"dev"}},
		"option of ext4":       {Fstype: "erofs", Options: []string{"discard"}},
		"key without mkfs":     {Fstype: "ext4", DriverOptions: []string{"encryption_key=ephemeral"}},
		"key of another kind":  {Fstype: "ext4", DriverOptions: []string{"create_filesystem", "encryption_key=kbs:///a/b/c"}},
		"mkfs of another kind": {Fstype: "squashfs", DriverOptions: []string{"create_filesystem"}},
		"empty for ever":       {Fstype: "ext4", Options: []string{"ro"}, DriverOptions: []string{"create_filesystem"}},
		"driver option":        {Fstype: "ext4", DriverOptions: []string{"insecure"}},
	} {
		s.Driver, s.Source, s.MountPoint = "blk", "02", a.cfg.Layout.Root+"/sandbox/v"
		if _, err := a.addStorages(t.Context(), "c1", []*agent.Storage{s}); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestApplyAll(t *testing.T) {
	needs.Root(t, "changing owners")
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := errors.Join(os.MkdirAll(dir+"/a/b", 0o700), os.WriteFile(dir+"/a/b/f", nil, 0o600), os.WriteFile(outside, nil, 0o600), os.Symlink(outside, dir+"/a/link")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (volumeGroup{set: true, gid: 4711}).applyAll(f); err != nil {
		t.Fatal(err)
	}
	check := func(p string, gid, mode uint32) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Gid != gid || st.Mode&0o7777 != mode {
			t.Errorf("%s: group %d, mode %o, %v", p, st.Gid, st.Mode&0o7777, err)
		}
	}
	check(dir+"/a/b", 4711, 0o2770)
	check(dir+"/a/b/f", 4711, 0o660)
	check(outside, 0, 0o600)
	if err := os.Chmod(dir+"/a/b/f", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (volumeGroup{set: true, gid: 4711, onMismatch: true}).applyAll(f); err != nil {
		t.Fatal(err)
	}
	check(dir+"/a/b/f", 4711, 0o600)
}

// TestWatched renews a volume the way Kubernetes changes one.
func TestWatched(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(source, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	put("..v1/key", "one")
	if err := errors.Join(os.Symlink("..v1", source+"/..data"), os.Symlink("..data/key", source+"/key")); err != nil {
		t.Fatal(err)
	}
	w := &watched{have: map[string]watchedFile{}}
	var err error
	if w.source, err = os.OpenRoot(source); err != nil {
		t.Fatal(err)
	}
	if w.target, err = os.OpenRoot(target); err != nil {
		t.Fatal(err)
	}
	renew := func(want string) {
		t.Helper()
		now, err := w.read()
		if err == nil {
			err = w.update(now)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(target + "/key"); err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
	}
	renew("one")
	put("..v2/key", "two")
	if err := errors.Join(os.Symlink("..v2", source+"/next"), os.Rename(source+"/next", source+"/..data"), os.RemoveAll(source+"/..v1")); err != nil {
		t.Fatal(err)
	}
	renew("two")
	if _, err := os.Lstat(target + "/..v1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old version stays: %v", err)
	}
	put("big", strings.Repeat("x", maxWatchedBytes))
	if _, err := w.read(); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
	put("big", "")
	for i := range maxWatchedFiles {
		put("f"+string(rune('a'+i)), "")
	}
	if _, err := w.read(); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestHugePages(t *testing.T) {
	for _, bad := range [][]string{nil, {"pagesize=2097152"}, {"pagesize=2M", "size=4M"}, {"pagesize=3000000", "size=6000000"}, {"pagesize=2097152", "size=1"}, {"pagesize=2097152", "size=99999999999999999999"}, {"uid=0"}} {
		if _, _, err := parseHuge(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	dir := t.TempDir()
	file := dir + "/hugepages-2048kB/nr_hugepages"
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("3\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := reserveHuge(dir, 2<<20, 8<<20); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(file); string(got) != "7" {
		t.Errorf("got %s", got)
	}
	if err := reserveHuge(dir, 1<<30, 1<<30); err == nil {
		t.Error("pages of a size that there is not")
	}
}
