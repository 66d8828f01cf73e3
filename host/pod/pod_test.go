package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	client "github.com/cloister/cloister/host/agent"

	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// fakeVM is a machine whose guest is a fakeguest.
type fakeVM struct {
	session *yamux.Session
	once    sync.Once
	exited  chan struct{}
	reason  string
	atOnce  bool // Stop was called without patience
}

func startFake(g *fakeguest.Guest, reason string) (*fakeVM, error) {
	host, guest := net.Pipe()
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.StreamOpenTimeout = false, io.Discard, 0
	session, err := yamux.Client(host, c)
	if err != nil {
		return nil, err
	}
	v := &fakeVM{session: session, exited: make(chan struct{}), reason: reason}
	go func() {
		_ = g.Serve(guest)
		guest.Close()
		v.end()
	}()
	return v, nil
}

func (v *fakeVM) end() { v.once.Do(func() { v.session.Close(); close(v.exited) }) }

func (v *fakeVM) Dial(_ context.Context, port uint32) (net.Conn, error) {
	s, err := v.session.OpenStream()
	if err != nil {
		return nil, err
	}
	_, err = s.Write([]byte{byte(port >> 24), byte(port >> 16), byte(port >> 8), byte(port)})
	return s, err
}
func (v *fakeVM) Exited() <-chan struct{} { return v.exited }
func (v *fakeVM) Err() error {
	return &vmm.ExitError{Name: "fake", Reason: v.reason, Console: []string{"console line"}}
}
func (v *fakeVM) Stop(ctx context.Context) error {
	v.atOnce = ctx.Err() != nil
	v.end()
	return nil
}
func (v *fakeVM) FatalReason() string      { return v.reason }
func (v *fakeVM) ConsoleTail(int) []string { return []string{"console line"} }

// env is a pod with a fake guest.
type env struct {
	dirs  paths.Dirs
	guest *fakeguest.Guest
	opts  Options
	out   safeBuffer

	mu     sync.Mutex
	events []Event
	seen   chan struct{} // gets something after each event
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func container(name string, init bool, policy string) launch.Container {
	return launch.Container{Name: name, Init: init, Image: "example/" + name, RestartPolicy: policy, Create: &agent.CreateContainerRequest{
		ContainerId: "id-" + name,
		OCI:         &agent.Spec{Process: &agent.Process{Args: []string{"/" + name}, Env: []string{"A=b"}, Cwd: "/"}},
	}}
}

func newEnv(t *testing.T, containers ...launch.Container) *env {
	t.Helper()
	base, err := os.MkdirTemp("", "pod") // short: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	e := &env{dirs: paths.At(filepath.Join(base, "h"), filepath.Join(base, "r")), seen: make(chan struct{}, 1000)}
	if err := e.dirs.Ensure(); err != nil {
		t.Fatal(err)
	}
	e.guest = &fakeguest.Guest{Programs: map[string]fakeguest.Program{}, Log: `{"msg":"hello"}` + "\n"}
	e.opts = Options{
		Dirs: e.dirs, Stdout: &e.out, Stderr: &e.out,
		Spec: Spec{Grace: time.Minute, Plan: &launch.Plan{
			APIVersion: launch.APIVersion, Name: "web", Sandbox: &agent.CreateSandboxRequest{Hostname: "web", SandboxId: "sandbox"}, Containers: containers,
			Resources: launch.Resources{VCPUs: 1, MemoryMiB: 256},
		}},
		StartVM: func(context.Context, vmm.Config) (Machine, error) { return startFake(e.guest, "") },
		OnEvent: func(ev Event) {
			e.mu.Lock()
			e.events = append(e.events, ev)
			e.mu.Unlock()
			e.seen <- struct{}{}
		},
	}
	return e
}

func (e *env) steps() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, ev := range e.events {
		s := ev.Step
		if ev.Container != "" {
			s += "(" + ev.Container + ")"
		}
		out = append(out, s)
	}
	return out
}

// waitStep waits until a step was reported.
func (e *env) waitStep(t *testing.T, step string) {
	t.Helper()
	limit := time.After(time.Minute)
	for !slices.Contains(e.steps(), step) {
		select {
		case <-e.seen:
		case <-limit:
			t.Fatalf("step %s was not reached: %v", step, e.steps())
		}
	}
}

// gone checks that nothing of the pod is left but its logs.
func (e *env) gone(t *testing.T) State {
	t.Helper()
	if _, err := os.Stat(filepath.Join(e.dirs.Run, "web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pod's directory is still there: %v", err)
	}
	s, err := Lookup(e.dirs, "web")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Done() || s.Ended == nil {
		t.Errorf("final state: %+v", s)
	}
	return s
}

func say(text string, code int) fakeguest.Program {
	return func(_ context.Context, p *fakeguest.Process) int {
		fmt.Fprint(p.Stdout, text)
		fmt.Fprint(p.Stderr, "err of ", text)
		return code
	}
}

// untilTerm runs until SIGTERM.
func untilTerm(ctx context.Context, p *fakeguest.Process) int {
	fmt.Fprintln(p.Stdout, "up")
	select {
	case <-p.Signals:
		return 143
	case <-ctx.Done():
		return 137
	}
}

// stubborn ends with SIGKILL only.
func stubborn(ctx context.Context, _ *fakeguest.Process) int {
	<-ctx.Done()
	return 137
}

func TestPodLife(t *testing.T) {
	e := newEnv(t, container("setup", true, ""), container("app", false, "Never"), container("side", false, ""))
	big := bytes.Repeat([]byte("0123456789"), 300_000)
	e.opts.Plan.Files = []launch.File{{Request: &agent.CopyFileRequest{Path: "/f", FileSize: int64(len(big)), Data: big}}}
	e.guest.Programs["id-setup"] = say("setup\n", 0)
	e.guest.Programs["id-app"] = say("app line\nlast", 3)
	e.guest.Programs["id-side"] = say("side\n", 0)
	res, err := Run(t.Context(), e.opts)
	if err != nil {
		t.Fatal(err)
	}
	if res.ExitCode != 3 || res.State.Phase != Failed || *res.State.ExitCode != 3 {
		t.Errorf("result %d, %+v", res.ExitCode, res.State)
	}
	steps := strings.Join(e.steps(), " ")
	want := "vm-start guest-ready network sandbox files create(setup) start(setup) exit(setup) create(app) start(app)"
	if !strings.HasPrefix(steps, want) || !strings.HasSuffix(steps, "gone") {
		t.Errorf("steps: %s", steps)
	}
	if !bytes.Equal(e.guest.File("/f"), big) {
		t.Error("the copied file differs")
	}
	for _, want := range []string{"[setup] setup\n", "[app] app line\n", "[app] last\n", "[app] err of app line\n", "[side] side\n"} {
		if !strings.Contains(e.out.String(), want) {
			t.Errorf("output has no %q:\n%s", want, e.out.String())
		}
	}
	s := e.gone(t)
	if c := s.Containers[1]; c.State != ContainerExited || *c.ExitCode != 3 {
		t.Errorf("container state %+v", c)
	}
	var stdout, stderr bytes.Buffer
	if err := Logs(t.Context(), e.dirs, "web", LogOptions{Container: "app", Stdout: &stdout, Stderr: &stderr}); err != nil {
		t.Fatal(err)
	}
	if stdout.String() != "app line\nlast" || stderr.String() != "err of app line\nlast" {
		t.Errorf("logs %q, %q", &stdout, &stderr)
	}
	stdout.Reset()
	if err := Logs(t.Context(), e.dirs, "web", LogOptions{Stdout: &stdout}); err != nil || stdout.String() != "app line\nlast" {
		t.Errorf("logs without a container are %q, %v; want those of the first that is no init container", &stdout, err)
	}
	if err := Logs(t.Context(), e.dirs, "web", LogOptions{Container: "x"}); err == nil || !strings.Contains(err.Error(), "app, side") {
		t.Errorf("logs of a container that is not there: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(s.LogDir, "guest.log")); !strings.Contains(string(b), "hello") {
		t.Errorf("guest log %q", b)
	}
	if err := Stop(t.Context(), e.dirs, "web", 0); !errors.Is(err, ErrEnded) {
		t.Errorf("stopping an ended pod: %v", err)
	}
}

// TestFullDisk writes output that cannot be stored: it has to be read and shown all the same.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var shown safeBuffer
	l := &containerLog{out: &output{stdout: &shown}, container: "app", name: "/dev/full", file: full}
	w := l.stream("stdout")
	for range 2 {
		if _, err := io.WriteString(w, "line\n"); err != nil {
			t.Errorf("output on a full disk: %v, want it to be lost", err)
		}
	}
	if shown.String() != "line\nline\n" {
		t.Errorf("shown was %q, want both lines", shown.String())
	}
	if err := l.close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("closing the log: %v, want why lines were lost", err)
	}
}

// TestReboot leaves the kept state of a pod that ran, and nothing of its run-time directory.
func TestReboot(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	dir := filepath.Join(e.dirs.Pods(), "web")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old := State{Name: "web", Phase: Running, Containers: []ContainerState{{Name: "app", State: ContainerRunning}}}
	if err := writeState(dir, &old); err != nil {
		t.Fatal(err)
	}
	one, err := Lookup(e.dirs, "web")
	if err != nil {
		t.Fatal(err)
	}
	all, err := List(e.dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(all, one) {
		if s.Phase != Failed || s.Error == "" || s.Containers[0].State != ContainerExited {
			t.Errorf("after a reboot the pod is %s (%q), its container %s, want %s and why", s.Phase, s.Error, s.Containers[0].State, Failed)
		}
	}
}

// TestLongAnswer has a guest that refuses with a text as long as the protocol carries.
func TestLongAnswer(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	e.guest.Denied = map[string]string{"CreateSandboxRequest": strings.Repeat("<", 3<<20)}
	if _, err := Run(t.Context(), e.opts); err == nil || !client.IsDenied(err) {
		t.Errorf("error %.200v, want a denial", err)
	}
	if _, err := List(e.dirs); err != nil {
		t.Errorf("listing pods after a guest's long answer: %v", err)
	}
}

func TestDenialsAreVerbatim(t *testing.T) {
	const text = `CreateContainerRequest is blocked by policy: image got "a", expected "b"`
	for request, doing := range map[string]string{
		"CreateContainerRequest": "creating container app", "CreateSandboxRequest": "creating the sandbox",
		"UpdateInterfaceRequest": "configuring the network interface", "StartContainerRequest": "starting container app",
	} {
		t.Run(request, func(t *testing.T) {
			e := newEnv(t, container("app", false, ""))
			e.guest.Denied = map[string]string{request: text + "\x1b[2J"}
			_, err := Run(t.Context(), e.opts)
			if err == nil || !strings.Contains(err.Error(), doing+": "+text) || !client.IsDenied(err) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("got %v", err)
			}
			if s := e.gone(t); s.Phase != Failed || !strings.Contains(s.Error, text) {
				t.Errorf("state %+v", s)
			}
		})
	}
}

func TestInitContainerFailure(t *testing.T) {
	e := newEnv(t, container("setup", true, "Never"), container("app", false, ""))
	e.guest.Programs["id-setup"] = say("no", 7)
	res, err := Run(t.Context(), e.opts)
	if err != nil || res.ExitCode != 7 {
		t.Errorf("%d, %v", res.ExitCode, err)
	}
	if slices.Contains(e.steps(), "create(app)") {
		t.Error("the app was created after a failed init container")
	}
	e.gone(t)
}

func TestStopFromAnotherProcess(t *testing.T) {
	for name, prog := range map[string]fakeguest.Program{"polite": untilTerm, "stubborn": stubborn} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, container("app", false, "Always"))
			e.guest.Programs["id-app"] = prog
			done := make(chan error, 1)
			var res Result
			go func() {
				var err error
				res, err = Run(context.Background(), e.opts)
				done <- err
			}()
			e.waitStep(t, StepRunning)
			pods, err := List(e.dirs)
			if err != nil || len(pods) != 1 || pods[0].Phase != Running {
				t.Errorf("%+v, %v", pods, err)
			}
			if _, err := Run(t.Context(), e.opts); !errors.Is(err, ErrRunning) {
				t.Errorf("a second pod of the same name: %v", err)
			}
			if cleaned, err := CleanStale(t.Context(), e.dirs); err != nil || len(cleaned) != 0 {
				t.Errorf("clean-up beside a running pod: %v, %v", cleaned, err)
			}
			grace := time.Minute
			if name == "stubborn" {
				grace = 0
			}
			if err := Stop(t.Context(), e.dirs, "web", grace); err != nil {
				t.Fatal(err)
			}
			e.gone(t)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if want := map[string]int{"polite": 143, "stubborn": 137}[name]; res.ExitCode != want {
				t.Errorf("exit code %d, want %d", res.ExitCode, want)
			}
		})
	}
}

func TestCancelWhileStarting(t *testing.T) {
	for _, request := range []string{"Check", "CreateContainerRequest"} {
		t.Run(request, func(t *testing.T) {
			e := newEnv(t, container("app", false, ""))
			e.guest.Block = map[string]chan struct{}{request: make(chan struct{})}
			var vm *fakeVM
			e.opts.StartVM = func(context.Context, vmm.Config) (m Machine, err error) {
				vm, err = startFake(e.guest, "")
				return vm, err
			}
			ctx, cancel := context.WithCancel(t.Context())
			e.opts.OnEvent = func(ev Event) {
				if ev.Step == StepVMStart && request == "Check" || ev.Step == StepSandbox {
					cancel()
				}
			}
			_, err := Run(ctx, e.opts)
			if !errors.Is(err, errStopped) {
				t.Errorf("got %v", err)
			}
			// A guest that has not come up does not power off when it is asked to.
			if early := request == "Check"; vm.atOnce != early {
				t.Errorf("VM stopped at once: %v, want %v", vm.atOnce, early)
			}
			e.gone(t)
		})
	}
}

func TestGuestDies(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	e.guest.Programs["id-app"] = stubborn
	e.opts.StartVM = func(context.Context, vmm.Config) (Machine, error) { return startFake(e.guest, "out of memory") }
	e.opts.OnEvent = func(ev Event) {
		if ev.Step == StepRunning {
			e.guest.Crash()
		}
	}
	_, err := Run(t.Context(), e.opts)
	var x *vmm.ExitError
	if !errors.As(err, &x) || !strings.Contains(err.Error(), "out of memory") || !strings.Contains(err.Error(), "console line") {
		t.Errorf("got %v", err)
	}
	if c := e.gone(t).Containers[0]; c.State != ContainerExited || c.Ended == nil {
		t.Errorf("the container of a guest that died is %s, want %s with its end", c.State, ContainerExited)
	}
	if err := Stop(t.Context(), e.dirs, "web", -1); !errors.Is(err, ErrEnded) {
		t.Errorf("stopping a pod that has ended: %v, want %v", err, ErrEnded)
	}
	if err := Stop(t.Context(), e.dirs, "none", -1); !errors.Is(err, ErrNotFound) {
		t.Errorf("stopping a pod that never was: %v, want %v", err, ErrNotFound)
	}
}

func TestSilentGuest(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	e.guest.Block = map[string]chan struct{}{"Check": make(chan struct{})}
	e.opts.ReadyTimeout = time.Millisecond
	_, err := Run(t.Context(), e.opts)
	if err == nil || !strings.Contains(err.Error(), "did not answer within 1ms") || !strings.Contains(err.Error(), "console line") {
		t.Errorf("got %v", err)
	}
	e.gone(t)
}

// TestStdin gives a pod's input to the container that asks for it, and to no other.
func TestStdin(t *testing.T) {
	e := newEnv(t, container("app", false, "Never"), container("reader", false, "Never"))
	e.opts.Plan.Containers[1].Stdin = true
	e.opts.Stdin = strings.NewReader("line\n")
	e.guest.Programs["id-app"] = say("app", 0)
	e.guest.Programs["id-reader"] = func(_ context.Context, p *fakeguest.Process) int {
		in, _ := io.ReadAll(p.Stdin)
		fmt.Fprintf(p.Stdout, "got %q\n", in)
		return 0
	}
	if _, err := Run(t.Context(), e.opts); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(e.out.String(), `[reader] got "line\n"`) {
		t.Errorf("output %q", e.out.String())
	}
	e.opts.Stdin, e.opts.Plan.Containers[1].Stdin = strings.NewReader("x"), false
	if _, err := Run(t.Context(), e.opts); err == nil || !strings.Contains(err.Error(), "stdin: true") {
		t.Errorf("input for a pod that takes none: %v", err)
	}
}

func TestExec(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	e.guest.Programs["id-app"] = untilTerm
	e.guest.Exec = func(_ context.Context, p *fakeguest.Process) int {
		in, _ := io.ReadAll(p.Stdin)
		fmt.Fprintf(p.Stdout, "%s %s %s", p.Args, p.Env, in)
		fmt.Fprint(p.Stderr, "warn")
		return 5
	}
	done := make(chan error, 1)
	go func() { _, err := Run(context.Background(), e.opts); done <- err }()
	e.waitStep(t, StepRunning)
	var stdout, stderr bytes.Buffer
	code, err := Exec(t.Context(), e.dirs, "web", ExecOptions{
		Argv: []string{"ls", "-l"}, Stdin: strings.NewReader("input"), Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil || code != 5 || stdout.String() != "[ls -l] [A=b] input" || stderr.String() != "warn" {
		t.Errorf("%d, %v, %q, %q", code, err, &stdout, &stderr)
	}
	for name, o := range map[string]ExecOptions{"no container \"x\"": {Container: "x", Argv: []string{"a"}}, "no program": {}} {
		if _, err := Exec(t.Context(), e.dirs, "web", o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Exec(t.Context(), e.dirs, "none", ExecOptions{Argv: []string{"a"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown pod: %v", err)
	}
	if err := Stop(t.Context(), e.dirs, "web", -1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := Exec(t.Context(), e.dirs, "web", ExecOptions{Argv: []string{"a"}}); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("exec in an ended pod: %v", err)
	}
}

func TestExecDenied(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	e.guest.Programs["id-app"] = untilTerm
	e.guest.Denied = map[string]string{"ExecProcessRequest": "ExecProcessRequest is blocked by policy: sh"}
	done := make(chan error, 1)
	go func() { _, err := Run(context.Background(), e.opts); done <- err }()
	e.waitStep(t, StepRunning)
	_, err := Exec(t.Context(), e.dirs, "web", ExecOptions{Argv: []string{"sh"}})
	want := `running "sh" in container app of pod web: ExecProcessRequest is blocked by policy: sh`
	if !client.IsDenied(err) || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if err := Stop(t.Context(), e.dirs, "web", -1); err != nil {
		t.Fatal(err)
	}
	<-done
}

func TestFollowLogs(t *testing.T) {
	e := newEnv(t, container("app", false, ""))
	say := make(chan string)
	e.guest.Programs["id-app"] = func(_ context.Context, p *fakeguest.Process) int {
		for s := range say {
			fmt.Fprint(p.Stdout, s)
		}
		return 0
	}
	done := make(chan error, 2)
	go func() { _, err := Run(context.Background(), e.opts); done <- err }()
	e.waitStep(t, StepRunning)
	r, w := io.Pipe()
	go func() {
		done <- Logs(context.Background(), e.dirs, "web", LogOptions{Follow: true, Stdout: w})
		w.Close()
	}()
	read := func(n int) string {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	say <- "one\n"
	if got := read(4); got != "one\n" {
		t.Errorf("got %q", got)
	}
	say <- "two\nthr"
	if got := read(4); got != "two\n" {
		t.Errorf("got %q", got)
	}
	say <- "ee"
	close(say)
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "three" {
		t.Errorf("got %q, %v", rest, err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
