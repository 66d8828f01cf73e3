package guestvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/template"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/host/vmm/vmmtest"
	"github.com/cloister/cloister/wire/agent"
)

// TestMain lets this program be what makes templates, as the shim is.
func TestMain(m *testing.M) {
	if status, ok := template.Command(os.Args[1:]); ok {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// TestTemplate starts two guests from one template: each has random numbers, a clock, a card, a shared directory and a size of its own.
func TestTemplate(t *testing.T) {
	img := image(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cfg := vmm.Config{
		Name: "template", Kernel: img + "/vmlinuz", Initrd: img + "/initrd.cpio", Cmdline: "console=ttyS0 quiet panic=-1 cloister.sandboxed agent.hotplug_timeout=60",
		VCPUs: 1, MaxVCPUs: 2, MemoryMiB: 512, MaxMemoryMiB: 1024, Balloon: true, Accel: vmm.AccelTCG,
	}
	base, err := os.MkdirTemp("/tmp", "tp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	saved := base + "/saved"
	if err := os.Mkdir(saved, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = base + "/vm"
	if err := qemu.SaveTemplate(ctx, cfg, saved, 1<<20, nil); err == nil || !strings.Contains(err.Error(), "there is room for 1") {
		t.Fatalf("in 1 MiB: %v", err)
	}
	if err := errors.Join(os.RemoveAll(saved), os.Mkdir(saved, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := qemu.SaveTemplate(ctx, cfg, saved, 1<<30, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the template's machine has left something: %v", err)
	}
	own := map[string]bool{} // what no two may have
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		share := t.TempDir()
		if err := os.Mkdir(share+"/root", 0o755); err != nil {
			t.Fatal(err)
		}
		goBuild(t, "./probe", share+"/root/probe")
		c := cfg
		c.Name, c.Template, c.Share = fmt.Sprint("clone", i), saved, &vmm.Share{Tag: "kataShared", Socket: daemon(t, share)}
		mac := fmt.Sprintf("02:00:00:00:35:%02x", i)
		c.NICs = []vmm.NIC{{ID: "eth0", MAC: mac, Taps: vmmtest.Taps(t, fmt.Sprint("cltpl", i), 1), MTU: 1400}}
		var pids []int
		c.Started = func(pid int) error { pids = append(pids, pid); return nil }
		if i == 1 {
			c.MemoryCopier = template.Copier(self)
		}
		vm, err := qemu.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) != 1+i || pids[i] != vm.PID() {
			t.Errorf("processes of machine %d: %v", i, pids)
		}
		conn, err := vm.Dial(ctx, 1024)
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		v := &machine{t: t, agent: agent.NewAgentServiceClient(client)}
		now := time.Date(2031+i, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
		v.must(v.agent.ReseedRandomDev(ctx, &agent.ReseedRandomDevRequest{Data: []byte(mac)}))
		v.must(v.agent.SetGuestDateTime(ctx, &agent.SetGuestDateTimeRequest{Sec: now}))
		v.must(v.agent.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: &agent.Interface{Device: "eth0", Name: "eth0", HwAddr: mac, Mtu: 1400,
			IPAddresses: []*agent.IPAddress{{Address: "10.35.0.2", Mask: "24"}}}}))
		have, mib, err := vm.Resize(ctx, 1, 768)
		if err != nil || have != 1 || mib != 768 {
			t.Fatalf("%d processors, %d MiB, %v", have, mib, err)
		}
		v.must(v.agent.OnlineCPUMem(ctx, &agent.OnlineCPUMemRequest{Wait: true, NbCpus: 1}))
		v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{Hostname: "pod", SandboxId: "sandbox1", Storages: append(shm(),
			&agent.Storage{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", Options: []string{"nodev"}, MountPoint: shared})}))
		out := v.run(ctx, probe("one", "cat=/proc/sys/kernel/random/boot_id", "cat=/proc/sys/kernel/random/uuid", "time=", "cat=/proc/meminfo"))
		lines := strings.Split(out, "\n")
		if len(lines) < 4 {
			t.Fatalf("got %q", out)
		}
		for _, id := range lines[:2] {
			if len(id) < 36 || own[id] {
				t.Errorf("%q is not its own", id)
			}
			own[id] = true
		}
		var seconds, total int64
		fmt.Sscan(lines[2], &seconds)
		fmt.Sscanf(lines[3], "MemTotal: %d", &total)
		if seconds < now || seconds > now+600 || total>>10 < 600 {
			t.Errorf("clock %d, want %d; memory %d kB", seconds, now, total)
		}
		client.Close()
		end, cancel := context.WithCancel(ctx)
		cancel()
		if err := vm.Stop(end); err != nil {
			t.Error(err)
		}
	}
	// A page of the memory, a byte of the state, another shape, no template at all.
	c := cfg
	c.Name, c.Template = "bad", saved
	refused := func(what, want string) {
		t.Helper()
		vm, err := qemu.Start(ctx, c)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
		if vm != nil {
			_ = vm.Stop(ctx)
		}
		if _, err := os.Stat(c.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something is left: %v", what, err)
		}
	}
	flip := func(name string, at int64) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(saved, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		_, rerr := f.ReadAt(b[:], at)
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], at); err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
	}
	flip("memory", 100<<20)
	refused("memory", "damaged")
	c.MemoryCopier = template.Copier(self)
	refused("memory, by its own process", "damaged")
	flip("memory", 100<<20)
	flip("state", 1000)
	refused("state", "damaged")
	flip("state", 1000)
	c.MemoryMiB = 640
	refused("shape", "another virtual machine")
	c.MemoryMiB = 512
	if err := os.Truncate(saved+"/memory", 1<<20); err != nil {
		t.Fatal(err)
	}
	refused("size", "has not the size")
	if err := os.RemoveAll(saved); err != nil {
		t.Fatal(err)
	}
	refused("nothing", "no such file")
}

// TestSandboxFromTemplate is the whole way: a pod starts from a template, and boots when that one is bad.
func TestSandboxFromTemplate(t *testing.T) {
	img := image(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("/tmp", "tp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	file := base + "/runtime.toml"
	text := fmt.Sprintf("[guest]\nkernel = %q\ninitrd = %q\n[sandbox]\ntemplate = \"on\"\n[vmm]\naccel = \"tcg\"\n[timeouts]\nboot = \"4m\"\n[network]\nmodel = \"none\"\n",
		img+"/vmlinuz", img+"/initrd.cpio")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := runtimeconfig.Load(runtimeconfig.Request{File: file, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	store := template.New(base + "/templates")
	create := func(id string) *sandbox.Sandbox {
		t.Helper()
		s, err := sandbox.Create(ctx, sandbox.Config{
			Root: base + "/s", Namespace: "templates", ID: id, Runtime: e, Self: self, Templates: base + "/templates",
			Spec: &specs.Spec{Version: specs.Version, Process: &specs.Process{Args: []string{"/pause"}, Cwd: "/"},
				Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id},
				Linux:       &specs.Linux{CgroupsPath: "/cloister-templates/" + id}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	stop := func(s *sandbox.Sandbox) {
		t.Helper()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("something is left: %v", err)
		}
	}
	first := create("first")
	if first.FromTemplate() {
		t.Error("started from a template that there is not")
	}
	key, done := first.Template()
	stop(first) // the maker goes on
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	dir := store.Find(key)
	if dir == "" {
		why, _ := os.ReadFile(base + "/templates/" + key + ".failed")
		t.Fatalf("no template was made: %s", why)
	}
	second := create("second")
	if !second.FromTemplate() {
		t.Error("booted beside a template")
	}
	// What the copy of the memory takes is the pod's, not the shim's.
	if stats, err := second.HostStats(ctx); err != nil || stats.Memory < 100<<20 {
		t.Errorf("the pod's control group: %+v, %v", stats, err)
	}
	stop(second)

	// A template that is whole for all one can see, and whose guest never answers: what was started of it ends, and the pod boots.
	if out, err := exec.CommandContext(ctx, "cp", "-a", dir, base+"/copy").CombinedOutput(); err != nil { // it keeps holes
		t.Fatalf("%v: %s", err, out)
	}
	hollow(t, dir)
	empty := create("empty")
	if empty.FromTemplate() || store.Find(key) != "" {
		t.Error("a template without memory was used, or kept")
	}
	_, done = empty.Template()
	<-done
	stop(empty)
	if err := errors.Join(os.Remove(base+"/templates/"+key+".failed"), os.Rename(base+"/copy", dir)); err != nil {
		t.Fatal(err)
	}

	// A template of which half is gone: the pod boots, and the template is not tried again.
	if err := os.Truncate(dir+"/state", 1000); err != nil {
		t.Fatal(err)
	}
	third := create("third")
	if third.FromTemplate() || store.Find(key) != "" {
		t.Error("a bad template was used, or kept")
	}
	_, done = third.Template()
	<-done
	stop(third)
	if entries, err := os.ReadDir(base + "/templates"); err != nil || len(entries) != 2 { // the lock and the mark
		t.Errorf("left of templates: %v, %v", entries, err)
	}
}

// hollow makes all of a template's memory zeros, with the sum that fits.
func hollow(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(dir + "/memory")
	if err != nil {
		t.Fatal(err)
	}
	var facts map[string]any
	text, err := os.ReadFile(dir + "/template.json")
	if err := errors.Join(err, json.Unmarshal(text, &facts)); err != nil {
		t.Fatal(err)
	}
	facts["memory_sum"] = 0
	text, err = json.Marshal(facts)
	if err := errors.Join(err, os.WriteFile(dir+"/template.json", text, 0o600), os.Truncate(dir+"/memory", 0), os.Truncate(dir+"/memory", info.Size())); err != nil {
		t.Fatal(err)
	}
}
