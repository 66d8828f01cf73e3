package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/test/fakeguest"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// testConfig is a sandbox of a node that has nothing but a fake guest.
func testConfig(t *testing.T, guest *fakeguest.Guest) Config {
	t.Helper()
	dir := t.TempDir()
	kernel, file := filepath.Join(dir, "kernel"), filepath.Join(dir, "runtime.toml")
	text := "guest.kernel = \"" + kernel + "\"\nguest.initrd = \"" + kernel + "\"\nvmm.accel = \"tcg\"\nnetwork.model = \"none\"\n" +
		"storage.shared_fs = \"none\"\nstorage.guest_pull = true\ntimeouts.boot = \"10s\"\n"
	for name, text := range map[string]string{kernel: "kernel", file: text} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	effective, err := runtimeconfig.Load(runtimeconfig.Request{File: file})
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Root: filepath.Join(dir, "root"), Namespace: "test", ID: "pod", Spec: testSpec(), Runtime: effective,
		StartVM: func(context.Context, vmm.Config) (vmm.Machine, error) { return fakeguest.StartMachine(guest) },
	}
}

func testSpec() *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/run"}}, Linux: &specs.Linux{},
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.image-name": "example/image",
		},
	}
}

func gone(t *testing.T, c Config) {
	t.Helper()
	if left, err := os.ReadDir(c.Root); err == nil && len(left) > 0 {
		t.Errorf("%s was left", left[0].Name())
	}
}

// stubborn is a machine whose end fails a few times.
type stubborn struct {
	*fakeguest.Machine
	fail atomic.Int32
}

func (s *stubborn) Stop(ctx context.Context) error {
	if s.fail.Add(-1) >= 0 {
		return errors.New("the monitor does not end")
	}
	return s.Machine.Stop(ctx)
}

// TestStop stops a sandbox again and again, and at the same time.
func TestStop(t *testing.T) {
	c := testConfig(t, &fakeguest.Guest{})
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := s.Stop(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	<-s.Ended()
	if err := s.Err(); err != nil {
		t.Errorf("the end of a sandbox that was stopped: %v", err)
	}
	if err := s.StopVM(testContext(t)); err != nil {
		t.Error(err)
	}
	gone(t, c)
}

// TestStopAgain has a part that cannot be removed at first: it is reported, and the next call does not believe that all was done.
func TestStopAgain(t *testing.T) {
	c := testConfig(t, &fakeguest.Guest{})
	var vm *stubborn
	c.StartVM = func(context.Context, vmm.Config) (vmm.Machine, error) {
		m, err := fakeguest.StartMachine(&fakeguest.Guest{Denied: map[string]string{"DestroySandboxRequest": "no"}})
		vm = &stubborn{Machine: m}
		return vm, err
	}
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	vm.fail.Store(1)
	if err := s.Stop(testContext(t)); err == nil || !strings.Contains(err.Error(), "the monitor does not end") {
		t.Errorf("got %v", err)
	}
	if err := s.Stop(testContext(t)); err != nil {
		t.Error(err)
	}
	select {
	case <-s.Ended():
	case <-time.After(time.Minute):
		t.Error("the virtual machine still runs")
	}
	gone(t, c)
}

// TestCreateTakesOver finds the directory of a shim that is gone.
func TestCreateTakesOver(t *testing.T) {
	c := testConfig(t, &fakeguest.Guest{})
	dir, err := Dir(c.Root, c.Namespace, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"state.json": "{half", "share/.keep": "", "vm/qmp.sock": "x", ".state.json.123": "",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := ReadState(s.Dir()); err != nil || st.Shim != os.Getpid() || st.VMM == 0 || st.ID != "pod" {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := s.Stop(testContext(t)); err != nil {
		t.Error(err)
	}
	gone(t, c)
}

// TestCleanup of what never was, of what is half there, and of names that are none.
func TestCleanup(t *testing.T) {
	root := t.TempDir()
	dir, err := Dir(root, "ns", "id")
	if err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(testContext(t), dir); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Cleanup(testContext(t), dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the namespace's directory: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a..b", "a b", "a\x00", "-a", strings.Repeat("x", 129)} {
		if _, err := Dir(root, bad, "id"); err == nil {
			t.Errorf("namespace %q was taken", bad)
		}
		if _, err := Dir(root, "ns", bad); err == nil {
			t.Errorf("sandbox %q was taken", bad)
		}
	}
}

// TestGrow brings the VM to the size of its containers, and not below.
func TestGrow(t *testing.T) {
	g := &fakeguest.Guest{}
	c := testConfig(t, g)
	var vm *fakeguest.Machine
	var first vmm.Config
	c.StartVM = func(_ context.Context, cfg vmm.Config) (_ vmm.Machine, err error) {
		first = cfg
		vm, err = fakeguest.StartMachine(g)
		return vm, err
	}
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Stop(testContext(t)); err != nil {
			t.Error(err)
		}
	}()
	if !strings.Contains(" "+first.Cmdline+" ", " cloister.sandboxed ") || first.InitdataImage != nil || first.TPM != nil || first.TEE != nil {
		t.Errorf("the machine %+v", first)
	}
	container := func(id string, mib int64) error {
		spec := testSpec()
		spec.Annotations["io.kubernetes.cri.container-type"] = "container"
		spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(mib << 20)}}
		return s.CreateContainer(testContext(t), Container{ID: id, Bundle: "/none", Spec: spec})
	}
	if err := container("a", 1<<40); err == nil || !strings.Contains(err.Error(), "creating container a") {
		t.Errorf("a container larger than the host: %v", err)
	}
	if err := container("a", 1024); err != nil {
		t.Fatal(err)
	}
	_, memory := vm.Size()
	if memory < 1024 {
		t.Errorf("the machine has %d MiB", memory)
	}
	if err := container("a", 1); !errors.Is(err, ErrExists) {
		t.Errorf("the same name again: %v", err)
	}
	if err := s.RemoveContainer(testContext(t), "a"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveContainer(testContext(t), "a"); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	g.SetDenied("CreateContainerRequest", "CreateContainerRequest is blocked by policy")
	if err := container("b", 1); !agent.IsDenied(err) {
		t.Errorf("got %v", err)
	}
	g.SetDenied("CreateContainerRequest", "")
	if err := container("b", 1); err != nil { // nothing of the refused one is in the way
		t.Error(err)
	}
	if _, now := vm.Size(); now != memory {
		t.Errorf("the machine went from %d to %d MiB", memory, now)
	}
}

// TestDeadGuest ends the VM of a guest that stops to answer, and leaves alone one that answers, however short its time is.
func TestDeadGuest(t *testing.T) {
	var dead atomic.Bool
	var asked atomic.Int32
	g := &fakeguest.Guest{Hook: func(ctx context.Context, name string) error {
		if name != "Check" {
			return nil
		}
		asked.Add(1)
		if dead.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	c := testConfig(t, g)
	c.Runtime.Config.Timeouts.HealthCheck = time.Second
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Stop(testContext(t)); err != nil {
			t.Error(err)
		}
		gone(t, c)
	}()
	select {
	case <-s.Ended():
		t.Fatalf("a guest that answers was ended: %v", s.Err())
	case <-time.After(3 * time.Second):
	}
	dead.Store(true)
	select {
	case <-s.Ended():
	case <-time.After(time.Minute):
		t.Fatalf("a dead guest was not noticed; it was asked %d times", asked.Load())
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "no sign of health") {
		t.Errorf("the end of a dead guest: %v", err)
	}
}
