package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
)

// childStep tells this program to be a shim that gets stuck at a step, and childDir where.
const (
	childStep = "CLOISTER_TEST_STEP"
	childDir  = "CLOISTER_TEST_DIR"
)

// steps at which the child is killed: before the VM, inside its start, and at each request to the guest.
var steps = []string{"start", "started", "Check", "CreateSandboxRequest", "CreateContainerRequest", "StartContainerRequest", "running"}

func TestMain(m *testing.M) {
	if step := os.Getenv(childStep); step != "" {
		child(step, os.Getenv(childDir))
	}
	os.Exit(m.Run())
}

// child creates and starts a pod, and says so where it shall be killed.
func child(step, dir string) {
	stuck := func() {
		fmt.Println("stuck")
		select {}
	}
	s := New(Config{
		Namespace: "test", ID: "pod", Root: filepath.Join(dir, "root"), Events: quiet{}, Exit: func() {},
		StartVM: func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
			if step == "start" {
				stuck()
			}
			if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
				return nil, err
			}
			monitor := exec.Command("sleep", "1000")
			monitor.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := monitor.Start(); err != nil {
				return nil, err
			}
			fmt.Println("monitor", monitor.Process.Pid)
			if os.Getuid() == 0 { // control groups need root
				if err := cfg.Started(monitor.Process.Pid); err != nil {
					return nil, err
				}
			}
			if step == "started" {
				stuck()
			}
			return fakeguest.StartMachine(&fakeguest.Guest{
				Programs: map[string]fakeguest.Program{"pod": untilKilled},
				Hook: func(_ context.Context, name string) error {
					if name == step {
						stuck()
					}
					return nil
				},
			})
		},
	})
	ctx := context.Background()
	_, err := s.Create(ctx, &task.CreateTaskRequest{ID: "pod", Bundle: filepath.Join(dir, "bundle")})
	if err == nil {
		_, err = s.Start(ctx, &task.StartRequest{ID: "pod"})
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	stuck()
}

// TestKilled kills the shim at each step: what is cleaned up afterwards leaves nothing, can be done twice, and the next shim can start.
func TestKilled(t *testing.T) {
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			e := newEnv(t)
			spec := specOf("sandbox")
			spec.Linux.CgroupsPath = groupName(t)
			e.must(os.Rename(e.bundle(spec), filepath.Join(e.dir, "bundle")))
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), childStep+"="+step, childDir+"="+e.dir)
			cmd.Stderr = e
			out, err := cmd.StdoutPipe()
			e.must(err, cmd.Start())
			monitor := ""
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "stuck" {
				if text, ok := strings.CutPrefix(lines.Text(), "monitor "); ok {
					monitor = text
				}
				if strings.HasPrefix(lines.Text(), "error ") {
					t.Error(lines.Text())
				}
			}
			e.must(cmd.Process.Kill())
			_ = cmd.Wait()
			dir, err := sandbox.Dir(e.cfg.Root, "test", "pod")
			e.must(err)
			state, err := sandbox.ReadState(dir)
			e.must(err)
			for range 2 {
				e.must(sandbox.Cleanup(testContext(t), dir))
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the directory: %v", err)
			}
			if state.Cgroup != nil {
				for _, path := range state.Cgroup.Paths {
					if _, err := os.Stat(path); err == nil {
						t.Errorf("the control group %s is left", path)
					}
				}
			}
			if text, err := os.ReadFile("/proc/" + monitor + "/cmdline"); monitor != "" && err == nil && strings.HasPrefix(string(text), "sleep") {
				t.Errorf("the monitor, process %s, is left", monitor)
			}
			e.pod()
		})
	}
}

// quiet takes events to nowhere.
type quiet struct{}

func (quiet) Publish(proto.Message) {}

// groupName is the path of a control group that no other test uses.
func groupName(t *testing.T) string {
	return "/cloister-test-" + filepath.Base(filepath.Dir(t.TempDir()))
}

// withMonitor gives the pod's VM a process on the host, in the control group.
func (e *env) withMonitor() {
	start := e.cfg.StartVM
	e.service.cfg.StartVM = func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
		monitor := exec.Command("sleep", "1000")
		monitor.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := monitor.Start(); err != nil {
			return nil, err
		}
		if err := cfg.Started(monitor.Process.Pid); err != nil {
			_ = monitor.Process.Kill()
			_ = monitor.Wait()
			return nil, err
		}
		vm, err := start(ctx, cfg)
		if err != nil {
			return nil, err
		}
		go func() {
			<-vm.Exited()
			_ = monitor.Process.Kill()
			_ = monitor.Wait()
		}()
		return vm, nil
	}
}

// TestControlGroup has the monitor in the pod's control group, which goes with the pod; one that cannot be made is an error.
func TestControlGroup(t *testing.T) {
	needs.Root(t, "control groups")
	e := newEnv(t)
	e.withMonitor()
	e.guest.Programs["pod"] = untilKilled
	create := func(path string) error {
		spec := specOf("sandbox")
		spec.Linux.CgroupsPath = path
		_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(spec)})
		return err
	}
	file := "/tasks/x" // below a file of the kernel's
	if cgroup.Mode() == cgroup.ModeV2 {
		file = "/memory.stat/x"
	}
	for _, path := range []string{file, "/", "/a/../../b", "relative", "a:b", "/" + strings.Repeat("x", 300), "/a\x00b"} {
		if err := create(path); err == nil || !strings.Contains(err.Error(), "cgroup") || strings.ContainsRune(err.Error(), 0) {
			t.Errorf("a control group %.40q: %v", path, err)
		}
	}
	e.must(create(groupName(t)))
	dir, err := sandbox.Dir(e.cfg.Root, "test", "pod")
	e.must(err)
	state, err := sandbox.ReadState(dir)
	e.must(err)
	if state.Cgroup == nil || len(state.Cgroup.Paths) == 0 {
		t.Fatalf("state %+v", state)
	}
	m, err := e.service.Stats(testContext(t), &task.StatsRequest{ID: "pod"})
	e.must(err)
	if len(m.GetStats().GetValue()) == 0 {
		t.Error("no figures of the pod")
	}
	_, err = e.delete("pod", "")
	e.must(err)
	for _, path := range state.Cgroup.Paths {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("the control group %s is left", path)
		}
	}
}
