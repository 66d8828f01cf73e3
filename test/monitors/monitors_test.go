package monitors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/cloudhypervisor/chtest"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/test/remotehypervisor"
)

// exitCode is that of the container's program.
const exitCode = 7

func newGuest() *fakeguest.Guest {
	return &fakeguest.Guest{Programs: map[string]fakeguest.Program{
		"pod": func(context.Context, *fakeguest.Process) int { return exitCode },
	}}
}

// TestMain makes the test program the monitor that it is started as.
func TestMain(m *testing.M) {
	chtest.MainWith(func(conn net.Conn) { _ = newGuest().ServeAgent(conn) })
	if slices.Contains(os.Args, "-machine") {
		if err := fakeQEMU(newGuest()); err != nil {
			fmt.Fprintln(os.Stderr, "fake QEMU:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// folder is one with a short name: sockets have short names.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// kvmHost is a host that has KVM, which Cloud Hypervisor needs.
func kvmHost(t *testing.T) doctor.Host {
	root := t.TempDir()
	for _, name := range []string{"dev/kvm", "sys/module/kvm_intel/x", "sys/module/kvm_amd/x", "sys/module/kvm/x"} {
		write(t, filepath.Join(root, name), "")
	}
	return doctor.Host{Root: root, ProbeKVM: func(context.Context, string) error { return nil }}
}

// TestMonitors makes a sandbox with each kind of monitor, by its configuration, and runs a container in it.
func TestMonitors(t *testing.T) {
	needs.Root(t, "the monitor's control group")
	kinds, err := kinds()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]func(t *testing.T, dir string) string{
		"qemu":             func(*testing.T, string) string { return fmt.Sprintf("vmm.path = %q\n", program) },
		"cloud-hypervisor": func(*testing.T, string) string { return fmt.Sprintf("vmm.path = %q\n", program) },
		"remote": func(t *testing.T, dir string) string {
			socket := filepath.Join(dir, "remote")
			s, err := remotehypervisor.Serve(socket, remotehypervisor.Options{
				Dir: dir, Start: func(context.Context, vmm.Config) (vmm.Machine, error) { return fakeguest.StartMachine(newGuest()) },
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if left := s.Machine("pod"); left != nil {
					t.Error("the remote machine was not stopped")
				}
				s.Close()
			})
			return fmt.Sprintf("vmm.remote_socket = %q\n", socket)
		},
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			make, ok := settings[kind]
			if !ok {
				t.Fatalf("there is no stand-in for %s", kind)
			}
			dir := folder(t)
			run(t, dir, kind, make(t, dir))
		})
	}
}

// kinds is what the setting takes, as its error says it.
func kinds() ([]string, error) {
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("vmm.kind = \"?\"\n"), 0o600); err != nil {
		return nil, err
	}
	_, err = runtimeconfig.Load(runtimeconfig.Request{File: file})
	if err == nil {
		return nil, errors.New("a kind that is none was taken")
	}
	_, list, ok := strings.Cut(err.Error(), "want one of ")
	if !ok {
		return nil, fmt.Errorf("which kinds there are: %w", err)
	}
	return strings.Split(list, ", "), nil
}

func run(t *testing.T, dir, kind, settings string) {
	kernel, file := filepath.Join(dir, "kernel"), filepath.Join(dir, "runtime.toml")
	write(t, kernel, "kernel")
	write(t, file, fmt.Sprintf("guest.kernel = %q\nvmm.kind = %q\nnetwork.model = \"none\"\nstorage.shared_fs = \"none\"\nstorage.guest_pull = true\n",
		kernel, kind)+settings)
	e, err := runtimeconfig.Load(runtimeconfig.Request{File: file})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	root := filepath.Join(dir, "r", "s")
	spec := &specs.Spec{
		Process: &specs.Process{Args: []string{"/pause"}}, Root: &specs.Root{Path: "rootfs"}, Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.image-name": "example/image",
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace}}},
	}
	s, err := sandbox.Create(ctx, sandbox.Config{Root: root, Namespace: "n", ID: "pod", Spec: spec, Runtime: e, Host: kvmHost(t)})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			_ = s.Stop(context.WithoutCancel(ctx))
		}
	})
	if got := s.Info()["monitor"]; got != kind {
		t.Errorf("the monitor is %s", got)
	}
	pid := s.PID()
	if (pid == 0) != (kind == "remote") {
		t.Errorf("process number %d", pid)
	}
	if err := s.CreateContainer(ctx, sandbox.Container{ID: "pod", Bundle: dir, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if err := s.StartContainer(ctx, "pod"); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(ctx, "pod", "pod"); err != nil || code != exitCode {
		t.Errorf("exit code %d, %v", code, err)
	}
	stopped = true
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if pid != 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		t.Errorf("process %d is left", pid)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestCleanupOfKilled: a monitor whose shim is gone is found by the sandbox's directory, whichever it is.
func TestCleanupOfKilled(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for kind, name := range map[string]string{"qemu": "qemu-system-x86_64", "cloud-hypervisor": "cloud-hypervisor"} {
		for _, noted := range []bool{true, false} {
			t.Run(fmt.Sprint(kind, noted), func(t *testing.T) {
				dir := filepath.Join(folder(t), "n", "pod")
				vm := filepath.Join(dir, "vm")
				if err := os.MkdirAll(vm, 0o700); err != nil {
					t.Fatal(err)
				}
				if noted {
					write(t, filepath.Join(dir, "state.json"), fmt.Sprintf(`{"namespace":"n","id":"pod","monitor":%q}`, kind))
				}
				as := filepath.Join(folder(t), name)
				if err := os.Symlink(program, as); err != nil {
					t.Fatal(err)
				}
				// A sleeper that looks like the monitor from outside, and says when it sleeps.
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				child, err := process.Start(as, []string{"-test.run=^TestSleeper$", "-test.timeout=5m", "-test.testlogfile=" + vm + "/log"},
					append(process.Environment(vm), "CLOISTER_TEST_SLEEP=1"), w)
				w.Close()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(child.Kill)
				if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
					t.Fatalf("%v: %v", err, child.Output.Lines(5))
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				if err := sandbox.Cleanup(ctx, dir); err != nil {
					t.Fatal(err)
				}
				if err := child.Wait(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "killed") {
					t.Errorf("it was not killed: %v", err)
				}
				if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the directory is left: %v", err)
				}
			})
		}
	}
}

// TestSleeper is the process that TestCleanupOfKilled starts.
func TestSleeper(t *testing.T) {
	if os.Getenv("CLOISTER_TEST_SLEEP") != "" {
		if _, err := os.NewFile(3, "ready").Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		select {}
	}
}
