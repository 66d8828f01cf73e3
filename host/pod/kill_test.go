package pod

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/wire/launch"
)

// The test program is also the supervisor that the tests kill or detach.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == SuperviseCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		guest := &fakeguest.Guest{Programs: map[string]fakeguest.Program{"id-app": untilTerm, "id-bad": say("bad\n", 9)}}
		if d := os.Getenv("TEST_DENY"); d != "" {
			guest.Denied = map[string]string{d: d + " is blocked by policy"}
		}
		o := Options{StartVM: func(ctx context.Context, cfg vmm.Config) (Machine, error) { return startMixed(ctx, cfg, guest) }}
		if os.Getenv("TEST_REAL_VM") == "" {
			o.StartVM = func(context.Context, vmm.Config) (Machine, error) { return startFake(guest, "") }
		}
		if supervise(ctx, os.Args[2], os.NewFile(3, "report"), o) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// mixedVM is a real VM whose firmware finds nothing to boot, with a fake guest in the place of its agent.
type mixedVM struct {
	*qemu.VM
	fake *fakeVM
}

func startMixed(ctx context.Context, cfg vmm.Config, g *fakeguest.Guest) (Machine, error) {
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	fake, err := startFake(g, "")
	return &mixedVM{vm, fake}, err
}

func (m *mixedVM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.fake.Dial(ctx, port)
}

const ovmf = "/usr/share/OVMF/"

// realVM configures a VM with firmware only, always under emulation.
func realVM(t *testing.T, e *env) vmm.Config {
	t.Helper()
	needs.Programs(t, "qemu-system-x86_64", "swtpm", "swtpm_setup", "swtpm_localca")
	needs.Files(t, ovmf+"OVMF_CODE_4M.fd")
	return vmm.Config{
		FirmwareCode: ovmf + "OVMF_CODE_4M.fd", FirmwareVars: ovmf + "OVMF_VARS_4M.fd",
		Accel: vmm.AccelTCG, TPM: &vmm.TPM{CADir: e.dirs.TPMCA()}, InitdataImage: make([]byte, 512),
	}
}

// processesOf lists the processes that have the directory in their command line.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// TestKilledSupervisorLeavesNothing kills the supervisor with SIGKILL after each step of a pod that has a real QEMU and a real swtpm.
func TestKilledSupervisorLeavesNothing(t *testing.T) {
	needs.Long(t, "starts many virtual machines")
	for _, step := range []string{"", StepVMStart, StepGuestReady, StepNetwork, StepSandbox, StepCreate, StepStart, StepRunning} {
		name := step
		if name == "" {
			name = "tpm-setup"
		}
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, container("app", false, ""))
			e.opts.VM = realVM(t, e)
			order, err := writeDetached(e.dirs, e.opts.Spec)
			if err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command(os.Args[0], SuperviseCommand, order)
			cmd.Env = append(os.Environ(), "TEST_REAL_VM=1")
			cmd.ExtraFiles, cmd.Stderr = []*os.File{w}, os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if step == "" {
				waitFor(t, e.dirs.Run, "web", vmDir)
			} else {
				untilEvent(t, r, step)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cleaned, err := CleanStale(ctx, e.dirs)
			if err != nil || len(cleaned) != 1 || cleaned[0] != "web" {
				t.Fatalf("cleaned %v, %v", cleaned, err)
			}
			if left := processesOf(t, e.dirs.Run); len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
			if s := e.gone(t); s.Phase != Failed || !strings.Contains(s.Error, "killed") {
				t.Errorf("state %s, %q", s.Phase, s.Error)
			}
			entries, err := os.ReadDir(e.dirs.Run)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range entries {
				if f.Name() != ".lock" {
					t.Errorf("left in the run directory: %s", f.Name())
				}
			}
		})
	}
}

// waitFor waits until a directory exists two levels below base, woken by the kernel.
func waitFor(t *testing.T, base, first, second string) {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(base); err != nil {
		t.Fatal(err)
	}
	limit := time.After(time.Minute)
	for {
		_ = w.Add(filepath.Join(base, first)) // fails until it exists
		if _, err := os.Stat(filepath.Join(base, first, second)); err == nil {
			return
		}
		select {
		case <-w.Events:
		case err := <-w.Errors:
			t.Fatal(err)
		case <-limit:
			t.Fatalf("%s/%s did not appear", first, second)
		}
	}
}

func untilEvent(t *testing.T, r *os.File, step string) {
	t.Helper()
	s := bufio.NewScanner(r)
	for s.Scan() {
		var m message
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if m.Error != "" {
			t.Fatal(m.Error)
		}
		if m.Event != nil && m.Event.Step == step {
			return
		}
	}
	t.Fatalf("the supervisor ended before step %s", step)
}

func TestSpawn(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	var steps []string
	if err := Spawn(t.Context(), os.Args[0], e.dirs, e.opts.Spec, func(ev Event) { steps = append(steps, ev.Step) }); err != nil {
		t.Fatal(err)
	}
	if len(steps) == 0 || steps[len(steps)-1] != StepRunning {
		t.Errorf("steps %v", steps)
	}
	if s, err := Lookup(e.dirs, "web"); err != nil || s.Phase != Running {
		t.Errorf("%+v, %v", s, err)
	}
	if err := Spawn(t.Context(), os.Args[0], e.dirs, e.opts.Spec, nil); err == nil || !strings.Contains(err.Error(), ErrRunning.Error()) {
		t.Errorf("second start: %v", err)
	}
	if err := Stop(t.Context(), e.dirs, "web", -1); err != nil {
		t.Fatal(err)
	}
	if s := e.gone(t); *s.ExitCode != 143 {
		t.Errorf("exit code %d", *s.ExitCode)
	}
}

func TestSpawnReportsWhyNot(t *testing.T) {
	t.Setenv("TEST_DENY", "CreateContainerRequest")
	e := newEnv(t, container("app", false, ""))
	err := Spawn(t.Context(), os.Args[0], e.dirs, e.opts.Spec, nil)
	if err == nil || !strings.Contains(err.Error(), "creating container app: CreateContainerRequest is blocked by policy") {
		t.Errorf("got %v", err)
	}
	e.gone(t)
	err = Spawn(t.Context(), "/bin/false", e.dirs, e.opts.Spec, nil)
	if err == nil || !strings.Contains(err.Error(), "before the pod ran") {
		t.Errorf("a supervisor that does nothing: %v", err)
	}
	if entries, _ := filepath.Glob(filepath.Join(e.dirs.Run, ".order-*")); len(entries) > 0 {
		t.Errorf("orders left: %v", entries)
	}
}

func TestControlRequests(t *testing.T) {
	for _, line := range []string{"", "CONNECT", "CONNECT x", "CONNECT 0", "CONNECT 4294967296", "STOP -2", "STOP 99999999", "GET /", "CONNECT -1"} {
		if _, _, err := parseRequest(line); err == nil {
			t.Errorf("%q was accepted", line)
		}
	}
	if verb, port, err := parseRequest("connect 1024"); verb != "CONNECT" || port != 1024 || err != nil {
		t.Errorf("%s %d %v", verb, port, err)
	}
	if _, err := readLine(strings.NewReader(strings.Repeat("a", 10_000))); err == nil {
		t.Error("an endless line was accepted")
	}
	if _, err := Attach(t.Context(), newEnv(t, launch.Container{}).dirs, "../web"); err == nil {
		t.Error("a name that is a path was accepted")
	}
}

func TestStaleStateOfUnknownKind(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	dir := filepath.Join(e.dirs.Run, "web")
	if err := os.MkdirAll(filepath.Join(dir, vmDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.guest.Programs["id-app"] = say("x\n", 0)
	// A new pod of that name takes the place of the remains.
	if _, err := Run(t.Context(), e.opts); err != nil {
		t.Fatal(err)
	}
	e.gone(t)
	if _, err := Lookup(e.dirs, "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{"CONNECT 1024", "STOP -1", "connect 4294967295", "STOP 1 2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		verb, arg, err := parseRequest(s)
		if err == nil && verb == "CONNECT" && (arg < 1 || arg > 1<<32-1) {
			t.Errorf("port %d was accepted", arg)
		}
	})
}

func FuzzStateAndLog(f *testing.F) {
	f.Add([]byte(`{"name":"web","phase":"Running","containers":[{"name":"a"}],"events":[]}`))
	f.Add([]byte(`{"time":"2026-01-01T00:00:00Z","stream":"stdout","log":"x\n"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		if parseState(b, &s) == nil {
			_, _ = s.pick("")
		}
		if e, err := parseEntry(b); err == nil {
			_ = fmt.Sprint(e)
		}
	})
}
