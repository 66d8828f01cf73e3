package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/test/fakeguest"
)

// limit is far more than any test takes.
const limit = time.Minute

// env is a service whose pod has a fake guest.
type env struct {
	t       *testing.T
	dir     string
	cfg     Config
	service *Service
	guest   *fakeguest.Guest
	machine chan *fakeguest.Machine // each that was started
	exits   chan struct{}           // one for each call of Exit

	mu     sync.Mutex
	events []string
	seen   chan struct{} // replaced at each event
	logged bytes.Buffer
}

// newEnv has a runtime configuration with these lines besides what a pod without a host needs.
func newEnv(t *testing.T, lines ...string) *env {
	t.Helper()
	e := &env{
		t: t, dir: t.TempDir(), machine: make(chan *fakeguest.Machine, 100), exits: make(chan struct{}, 10), seen: make(chan struct{}),
		guest: &fakeguest.Guest{Programs: map[string]fakeguest.Program{}},
	}
	e.configure(lines...)
	e.cfg = Config{
		Namespace: "test", ID: "pod", Root: filepath.Join(e.dir, "root"), Events: e, Exit: func() { e.exits <- struct{}{} },
		Logger: slog.New(slog.NewTextHandler(e, nil)),
		StartVM: func(context.Context, vmm.Config) (vmm.Machine, error) {
			m, err := fakeguest.StartMachine(e.guest)
			if err != nil {
				return nil, err
			}
			e.machine <- m
			return m, nil
		},
	}
	goroutines, files := runtime.NumGoroutine(), openFiles()
	e.service = New(e.cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := e.service.shutPod(ctx); err != nil {
			t.Errorf("removing the pod: %v", err)
		}
		e.nothingLeft(goroutines, files)
		if t.Failed() {
			e.mu.Lock()
			defer e.mu.Unlock()
			t.Logf("events: %s\nlog:\n%s", strings.Join(e.events, ", "), &e.logged)
		}
	})
	return e
}

func (e *env) configure(lines ...string) {
	e.t.Helper()
	kernel, file := filepath.Join(e.dir, "kernel"), filepath.Join(e.dir, "runtime.toml")
	text := "guest.kernel = " + fmt.Sprintf("%q", kernel) + "\nguest.initrd = " + fmt.Sprintf("%q", kernel) + "\nvmm.accel = \"tcg\"\n" +
		"network.model = \"none\"\nstorage.shared_fs = \"none\"\nstorage.guest_pull = true\n" + strings.Join(lines, "\n") + "\n"
	for name, text := range map[string]string{kernel: "kernel", file: text} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			e.t.Fatal(err)
		}
	}
	e.t.Setenv("CLOISTER_RUNTIME_CONFIG", file)
}

// replace sets one key of the configuration.
func (e *env) replace(key, value string) {
	e.t.Helper()
	file := filepath.Join(e.dir, "runtime.toml")
	text, err := os.ReadFile(file)
	e.must(err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, key+" ") {
			lines = append(lines, line)
		}
	}
	e.must(os.WriteFile(file, []byte(strings.Join(lines, "")+key+" = "+value+"\n"), 0o600))
}

// Write keeps the service's log.
func (e *env) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.logged.Len() > 1<<20 {
		return len(p), nil
	}
	return e.logged.Write(p)
}

// Publish notes an event in few words.
func (e *env) Publish(m proto.Message) {
	text := fmt.Sprintf("%T", m)
	switch m := m.(type) {
	case *eventtypes.TaskCreate:
		text = "create " + m.ContainerID
	case *eventtypes.TaskStart:
		text = "start " + m.ContainerID
	case *eventtypes.TaskExecAdded:
		text = "exec-added " + m.ContainerID + "/" + m.ExecID
	case *eventtypes.TaskExecStarted:
		text = "exec-started " + m.ContainerID + "/" + m.ExecID
	case *eventtypes.TaskExit:
		text = fmt.Sprintf("exit %s/%s %d", m.ContainerID, m.ID, m.ExitStatus)
	case *eventtypes.TaskDelete:
		text = fmt.Sprintf("delete %s %d", m.ContainerID, m.ExitStatus)
	case *eventtypes.TaskOOM:
		text = "oom " + m.ContainerID
	case *eventtypes.TaskPaused:
		text = "paused " + m.ContainerID
	case *eventtypes.TaskResumed:
		text = "resumed " + m.ContainerID
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, text)
	close(e.seen)
	e.seen = make(chan struct{})
}

// await waits for an event.
func (e *env) await(event string) {
	e.t.Helper()
	timer := time.After(limit)
	for {
		e.mu.Lock()
		there, seen := slices.Contains(e.events, event), e.seen
		e.mu.Unlock()
		if there {
			return
		}
		select {
		case <-seen:
		case <-timer:
			e.t.Fatalf("there was no event %q", event)
		}
	}
}

// wantEvents compares all events, or those of one container.
func (e *env) wantEvents(container string, want ...string) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	var got []string
	for _, ev := range e.events {
		if _, of, _ := strings.Cut(ev, " "); container == "" || of == container || strings.HasPrefix(of, container+" ") ||
			strings.HasPrefix(of, container+"/") {
			got = append(got, ev)
		}
	}
	if !slices.Equal(got, want) {
		e.t.Errorf("events\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// count says how often there was an event.
func (e *env) count(event string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.events {
		if ev == event {
			n++
		}
	}
	return n
}

// forget leaves an event out of what wantEvents compares.
func (e *env) forget(event string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = slices.DeleteFunc(e.events, func(ev string) bool { return ev == event })
}

func openFiles() (n int) {
	list, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range list {
		// The library of control groups keeps their root open from its first use on.
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(to, "/sys/fs/cgroup") {
			n++
		}
	}
	return n
}

// nothingLeft says what a pod has left behind. What ends by itself gets a moment.
func (e *env) nothingLeft(goroutines, files int) {
	e.t.Helper()
	if left, err := os.ReadDir(e.cfg.Root); err == nil && len(left) > 0 {
		e.t.Errorf("%s is left in the folder of the sandboxes", left[0].Name())
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(15 * time.Second); ; <-tick.C {
		if runtime.NumGoroutine() <= goroutines && openFiles() <= files {
			return
		}
		if time.Now().After(end) {
			var stacks [1 << 18]byte
			e.t.Errorf("%d goroutines and %d files, before there were %d and %d:\n%s", runtime.NumGoroutine(), openFiles(), goroutines, files,
				stacks[:runtime.Stack(stacks[:], true)])
			return
		}
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// podSpecOf are the specifications of a pod's containers; the first is that of the pod.
func specOf(kind string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/run"}, Cwd: "/"},
		Linux: &specs.Linux{},
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "pod", "io.kubernetes.cri.image-name": "example/image",
		},
	}
}

// bundle writes a bundle.
func (e *env) bundle(spec any) string {
	e.t.Helper()
	dir, err := os.MkdirTemp(e.dir, "bundle")
	if err != nil {
		e.t.Fatal(err)
	}
	text, ok := spec.([]byte)
	if !ok {
		if text, err = json.Marshal(spec); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		e.t.Fatal(err)
	}
	return dir
}

// create makes a container: the pod's own when it has the pod's name.
func (e *env) create(id string) error {
	kind := "container"
	if id == e.cfg.ID {
		kind = "sandbox"
	}
	_, err := e.service.Create(testContext(e.t), &task.CreateTaskRequest{ID: id, Bundle: e.bundle(specOf(kind))})
	return err
}

func (e *env) start(id, exec string) error {
	_, err := e.service.Start(testContext(e.t), &task.StartRequest{ID: id, ExecID: exec})
	return err
}

func (e *env) kill(id, exec string, signal syscall.Signal) error {
	_, err := e.service.Kill(testContext(e.t), &task.KillRequest{ID: id, ExecID: exec, Signal: uint32(signal)})
	return err
}

func (e *env) wait(id, exec string) uint32 {
	e.t.Helper()
	r, err := e.service.Wait(testContext(e.t), &task.WaitRequest{ID: id, ExecID: exec})
	e.must(err)
	if r.GetExitedAt().AsTime().IsZero() {
		e.t.Errorf("the end of %s/%s has no time", id, exec)
	}
	return r.GetExitStatus()
}

// waiter is somebody who waits for a process that may be deleted meanwhile.
func (e *env) waiter(id, exec string) func() uint32 {
	e.t.Helper()
	_, p, err := e.service.process(id, exec)
	e.must(err)
	return func() uint32 {
		e.t.Helper()
		select {
		case <-p.ended:
		case <-time.After(limit):
			e.t.Fatalf("the end of %s/%s was never told", id, exec)
		}
		return p.state().code
	}
}

func (e *env) delete(id, exec string) (*task.DeleteResponse, error) {
	return e.service.Delete(testContext(e.t), &task.DeleteRequest{ID: id, ExecID: exec})
}

func (e *env) exec(id, exec string) error {
	_, err := e.service.Exec(testContext(e.t), &task.ExecProcessRequest{ID: id, ExecID: exec, Spec: processSpec(e.t)})
	return err
}

func processSpec(t *testing.T) *anypb.Any {
	t.Helper()
	text, err := json.Marshal(&specs.Process{Args: []string{"/exec"}, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: text}
}

func (e *env) must(errs ...error) {
	e.t.Helper()
	for _, err := range errs {
		if err != nil {
			e.t.Fatal(err)
		}
	}
}

// pod starts the pod, whose own container runs until it is killed.
func (e *env) pod() *fakeguest.Machine {
	e.t.Helper()
	e.guest.Programs[e.cfg.ID] = untilKilled
	e.must(e.create(e.cfg.ID), e.start(e.cfg.ID, ""))
	return <-e.machine
}

// run makes and starts a container.
func (e *env) run(id string, p fakeguest.Program) {
	e.t.Helper()
	e.guest.SetProgram(id, p)
	e.must(e.create(id), e.start(id, ""))
}

func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %s %q", code, words)
		return
	}
	if got := status.Code(err); got != code {
		t.Errorf("code %s, want %s: %v", got, code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func untilKilled(ctx context.Context, _ *fakeguest.Process) int {
	<-ctx.Done()
	return 137
}

// untilTerm ends with SIGTERM.
func untilTerm(ctx context.Context, p *fakeguest.Process) int {
	for {
		select {
		case s := <-p.Signals:
			if s == uint32(syscall.SIGTERM) {
				return 143
			}
		case <-ctx.Done():
			return 137
		}
	}
}

func exitWith(code int) fakeguest.Program {
	return func(context.Context, *fakeguest.Process) int { return code }
}

// fifos are a process's streams.
type fifos struct {
	stdin                    *os.File
	stdout, stderr           *os.File
	inPath, outPath, errPath string
}

func (e *env) fifos(terminal bool) *fifos {
	e.t.Helper()
	dir, err := os.MkdirTemp(e.dir, "io")
	e.must(err)
	open := func(name string) (string, *os.File) {
		path := filepath.Join(dir, name)
		e.must(syscall.Mkfifo(path, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		e.must(err)
		e.t.Cleanup(func() { f.Close() })
		return path, f
	}
	f := &fifos{}
	f.inPath, f.stdin = open("in")
	f.outPath, f.stdout = open("out")
	if !terminal {
		f.errPath, f.stderr = open("err")
	}
	return f
}

func readN(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}
