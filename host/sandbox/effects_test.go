package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
)

// start makes a sandbox in a folder of its own, with settings besides what one without a host needs.
func start(t *testing.T, machine func(vmm.Config) (vmm.Machine, error), settings string, edit ...func(*Config)) (*Sandbox, string, error) {
	t.Helper()
	dir := world(t)
	e, err := effective(t, dir, "guest.kernel = \"@/kernel\"\nnetwork.model = \"none\"\nstorage.shared_fs = \"none\"\nstorage.guest_pull = true\n"+
		settings, "")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "sandboxes")
	cfg := Config{
		Root: root, Namespace: "n", ID: "pod", Runtime: e, Spec: &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}, Host: teeHost(t),
		StartVM: func(_ context.Context, c vmm.Config) (vmm.Machine, error) { return machine(c) },
	}
	for _, f := range edit {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Create(ctx, cfg)
	if err == nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := s.Stop(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return s, root, err
}

func guest(g *fakeguest.Guest) func(vmm.Config) (vmm.Machine, error) {
	return func(vmm.Config) (vmm.Machine, error) { return fakeguest.StartMachine(g) }
}

// silent is a machine whose guest says nothing.
func silent(vmm.Config) (vmm.Machine, error) {
	return fakeguest.StartServer(func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
}

// TestTimeouts: each bound is that of the configuration.
func TestTimeouts(t *testing.T) {
	t.Run("boot", func(t *testing.T) {
		t.Parallel()
		if _, _, err := start(t, silent, "timeouts.boot = \"1s\"\n"); err == nil || !strings.Contains(err.Error(), "did not answer within 1s") {
			t.Error(err)
		}
	})
	t.Run("requests", func(t *testing.T) {
		t.Parallel()
		never := make(chan struct{})
		t.Cleanup(func() { close(never) })
		s, _, err := start(t, guest(&fakeguest.Guest{Block: map[string]chan struct{}{"CreateContainerRequest": never, "SignalProcessRequest": never}}),
			"timeouts.create_container = \"1s\"\ntimeouts.request = \"3s\"\n")
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		spec := &specs.Spec{Process: &specs.Process{}, Root: &specs.Root{Path: "rootfs"}, Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.image-name": "example/image"}}
		// The guest knows the deadline, too, and may be the one who tells: the times are what counts.
		for want, call := range map[time.Duration]func() error{
			time.Second:     func() error { return s.CreateContainer(ctx, Container{ID: "pod", Bundle: t.TempDir(), Spec: spec}) },
			3 * time.Second: func() error { return s.Signal(ctx, "pod", "", 15, false) },
		} {
			began := time.Now()
			err := call()
			took := time.Since(began).Round(time.Second / 2)
			if err == nil || !strings.Contains(err.Error(), "no answer within "+want.String()) && !strings.Contains(err.Error(), "deadline exceeded") {
				t.Errorf("after %s: %v", want, err)
			}
			if took < want || took > want+15*time.Second {
				t.Errorf("%s took %s", want, took)
			}
		}
	})
}

// TestSteps: the file of steps is there when it is asked for, and names containers as people do.
func TestSteps(t *testing.T) {
	for _, on := range []bool{true, false} {
		s, _, err := start(t, guest(&fakeguest.Guest{}), fmt.Sprintf("tracing.steps = %v\n", on))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(s.Dir(), trace.FileName)
		if _, err := os.Stat(file); (err == nil) != on {
			t.Errorf("steps %v: %v", on, err)
		}
		if !on {
			continue
		}
		// Steps have the container's name in the manifest: its id says nothing to a person.
		spec := &specs.Spec{Process: &specs.Process{}, Root: &specs.Root{Path: "rootfs"}, Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.image-name": "example/image"}}
		if err := s.CreateContainer(t.Context(), Container{ID: "c0ffee", Bundle: t.TempDir(), Spec: spec}); err != nil {
			t.Fatal(err)
		}
		if err := s.StartContainer(t.Context(), "c0ffee"); err != nil {
			t.Fatal(err)
		}
		got, err := trace.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		var named []string
		for _, e := range got.Steps {
			if who := e.Attrs["container"]; who != "" {
				named = append(named, e.Name+" "+who)
			}
		}
		if !slices.Equal(named, []string{"create web", "start web"}) {
			t.Errorf("steps of the container: %q", named)
		}
	}
}

// TestKeepFailed: what tells why a sandbox failed is kept when it is asked for, of the last ones, and in bounds.
func TestKeepFailed(t *testing.T) {
	fail := func(c vmm.Config) (vmm.Machine, error) {
		big := strings.Repeat("x", keptBytes) + "\x1b[31mlast words"
		if err := os.WriteFile(c.ConsoleLog, []byte(big), 0o600); err != nil {
			return nil, err
		}
		return nil, &vmm.ExitError{Name: c.Name, Messages: []string{"no such accelerator"}}
	}
	_, root, err := start(t, fail, "debug.keep_failed = false\n")
	if err == nil {
		t.Fatal("it started")
	}
	traces := filepath.Join(filepath.Dir(root), "traces")
	if left, _ := filepath.Glob(filepath.Join(traces, "*"+keptReason)); len(left) > 0 {
		t.Errorf("kept without being asked: %q", left)
	}
	_, root, err = start(t, fail, "debug.keep_failed = true\n", func(c *Config) {
		old := filepath.Join(filepath.Dir(c.Root), "traces")
		for i := range keptFailed + 3 {
			for _, suffix := range []string{keptReason, keptConsole} {
				name := filepath.Join(old, fmt.Sprint("old", i)+suffix)
				write(t, name, nil)
				at := time.Now().Add(-time.Duration(i+1) * time.Hour)
				if err := os.Chtimes(name, at, at); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	if err == nil {
		t.Fatal("it started")
	}
	traces = filepath.Join(filepath.Dir(root), "traces")
	why, err := os.ReadFile(filepath.Join(traces, "pod"+keptReason))
	if err != nil || !strings.Contains(string(why), "no such accelerator") {
		t.Errorf("%q, %v", why, err)
	}
	console, err := os.ReadFile(filepath.Join(traces, "pod"+keptConsole))
	if err != nil || len(console) != keptBytes || !strings.HasSuffix(string(console), "x?[31mlast words") {
		t.Errorf("%d bytes, %v", len(console), err)
	}
	for _, suffix := range []string{keptReason, keptConsole} {
		if all, _ := filepath.Glob(filepath.Join(traces, "*"+suffix)); len(all) != keptFailed {
			t.Errorf("%d files *%s are kept", len(all), suffix)
		}
	}
	if _, err := os.Stat(filepath.Join(traces, fmt.Sprint("old", keptFailed-2)+keptReason)); err != nil {
		t.Errorf("the wrong ones went: %v", err)
	}
	if left, _ := os.ReadDir(root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// threaded is a machine with threads for its virtual CPUs.
type threaded struct {
	vmm.Machine
	threads []int
}

func (m threaded) VCPUThreads(context.Context) ([]int, error) { return m.threads, nil }

// threads are idle threads of this process until the test ends.
func threads(t *testing.T, n int) []int {
	var ids []int
	var wait sync.WaitGroup
	end, id := make(chan struct{}), make(chan int)
	for range n {
		wait.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends, with its affinity
			id <- unix.Gettid()
			<-end
		})
		ids = append(ids, <-id)
	}
	t.Cleanup(func() { close(end); wait.Wait() })
	return ids
}

// TestPin: each virtual CPU gets a CPU while there are as many, and all of them when there are not any more.
func TestPin(t *testing.T) {
	var mine unix.CPUSet
	if err := unix.SchedGetaffinity(0, &mine); err != nil {
		t.Fatal(err)
	}
	var have []int
	for i := range maxCPU {
		if mine.IsSet(i) {
			have = append(have, i)
		}
	}
	if len(have) < 2 {
		needs.Optional(t, "there is one CPU")
	}
	set := fmt.Sprintf("%d,%d", have[0], have[1])
	ids := threads(t, 2)
	machine := func(vmm.Config) (vmm.Machine, error) {
		m, err := fakeguest.StartMachine(&fakeguest.Guest{})
		return threaded{m, ids}, err
	}
	cpus := func(thread int) int {
		var s unix.CPUSet
		if err := unix.SchedGetaffinity(thread, &s); err != nil {
			t.Fatal(err)
		}
		return s.Count()
	}
	const two = "sandbox.vcpus = 1.5\nsandbox.overhead_vcpus = 0.5\n"
	with := func(c *Config) { c.Spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: set}} }
	if _, _, err := start(t, machine, two+"cgroup.pin_vcpus = false\n", with); err != nil {
		t.Fatal(err)
	}
	if got := cpus(ids[0]); got != len(have) {
		t.Errorf("without being asked: %d CPUs", got)
	}
	s, _, err := start(t, machine, two+"cgroup.pin_vcpus = true\n", with)
	if err != nil {
		t.Fatal(err)
	}
	if s.vcpus != 2 {
		t.Fatalf("%d virtual CPUs", s.vcpus)
	}
	for i, id := range ids {
		var got unix.CPUSet
		if err := unix.SchedGetaffinity(id, &got); err != nil || got.Count() != 1 || !got.IsSet(have[i]) {
			t.Errorf("thread %d: %v, %v", i, got, err)
		}
	}
	s.mu.Lock()
	s.vcpus = 3 // as after growing
	s.mu.Unlock()
	s.pin(t.Context())
	if got := cpus(ids[1]); got != 2 {
		t.Errorf("after it has grown: %d CPUs", got)
	}
	bare, _ := silent(vmm.Config{})
	defer bare.Stop(t.Context())
	other := &Sandbox{cfg: s.cfg, vm: bare}
	if err := other.tryPin(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a monitor without threads: %v", err)
	}
}

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string]string{"": "[]", "0-3,8": "[0 1 2 3 8]", " 1 , 1-2": "[1 2]", "1023": "[1023]"} {
		if got, err := parseCPUs(list); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{"x", "-1", "3-1", "0-1024", "0-99999999999999999999", "1-2-3"} {
		if got, err := parseCPUs(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}

// TestSilentCollector: a collector of traces that takes connections and gives no answer does not hold up the end of a sandbox.
func TestSilentCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, _, err := start(t, guest(&fakeguest.Guest{}), fmt.Sprintf("tracing.otlp_endpoint = \"http://%s/v1/traces\"\n", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*traceTimeout {
		t.Errorf("it took %s", took)
	}
}
