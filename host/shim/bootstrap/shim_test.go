package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TestMain is also the shim: it is started with the flags of containerd.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "-namespace" || os.Args[1] == "-info" || os.Args[1] == "-v") {
		os.Exit(Main(context.Background(), os.Args[1:], os.Getenv, Std(os.Args[1:]), testHandlers()))
	}
	os.Exit(m.Run())
}

func testHandlers() Handlers {
	return Handlers{Name: "io.containerd.cloister.v2", Version: "1", Revision: "r",
		Annotations: map[string]string{"a": "b"},
		Features:    &features.Features{MountOptions: []string{"rro"}},
		Extensions:  []proto.Message{&types.MountCapabilities{Types: []string{"erofs"}}},
		Serve: func(ctx context.Context, s *Server) error {
			fmt.Fprintln(s.Log, "level=info msg=serving")
			if d, err := time.ParseDuration(os.Getenv("TEST_IDLE")); err == nil {
				s.Idle(d, func() bool { return false })
			}
			return s.Run(ctx, func(srv *ttrpc.Server) error {
				if s.Params.Namespace == "test" {
					RegisterTask(srv, newFakeTask(s))
				} else {
					RegisterTask(srv, &testTask{s: s})
				}
				return nil
			})
		},
		Delete: func(_ context.Context, p Params) (Exit, error) {
			return Exit{PID: 7, Status: 137, At: time.Unix(1700000000, 0)}, os.WriteFile(filepath.Join(p.Bundle, "deleted"), []byte(p.Kind), 0o600)
		}}
}

// testTask answers what the tests ask for.
type testTask struct {
	task.TTRPCTaskService
	s *Server
}

func (t *testTask) Connect(context.Context, *task.ConnectRequest) (*task.ConnectResponse, error) {
	var o runtimeoptions.Options
	if t.s.Params.Options != nil {
		if err := t.s.Params.Options.UnmarshalTo(&o); err != nil {
			return nil, err
		}
	}
	return &task.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: 5, Version: o.ConfigPath}, nil
}

func (t *testTask) Shutdown(context.Context, *task.ShutdownRequest) (*emptypb.Empty, error) {
	t.s.Shutdown()
	return &emptypb.Empty{}, nil
}

// host is a containerd with its bundles.
type host struct {
	t                   *testing.T
	root, grpc, sockets string
}

func newHost(t *testing.T) *host {
	t.Helper()
	root := t.TempDir()
	sockets, err := os.MkdirTemp("", "s") // short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	return &host{t, root, filepath.Join(root, "containerd.sock"), sockets}
}

func (h *host) bundle(id, config string) string {
	dir := filepath.Join(h.root, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if config != "" {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	return dir
}

func (h *host) run(id, verb string, stdin []byte, env ...string) ([]byte, error) {
	cmd := exec.Command(os.Args[0], "-namespace", "ns", "-address", h.grpc, "-publish-binary", "/bin/false", "-id", id)
	if verb == "delete" {
		cmd.Args = append(cmd.Args, "-bundle", filepath.Join(h.root, id))
	}
	cmd.Args = append(cmd.Args, verb)
	cmd.Dir, cmd.Env, cmd.Stdin = filepath.Join(h.root, id), append(os.Environ(), env...), bytes.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, errs.String())
	}
	if errs.Len() > 0 && verb == "start" {
		return out, fmt.Errorf("start printed to stderr, which containerd takes for its answer: %s", errs.String())
	}
	return out, nil
}

// boot is what containerd 2.3 writes to stdin; it has the test's socket directory.
func (h *host) boot(id string) []byte {
	p := &bootapi.BootstrapParams{InstanceID: id, Namespace: "ns", ContainerdGrpcAddress: h.grpc, SocketDir: &h.sockets}
	if err := p.AddExtension(&runtimeoptions.Options{ConfigPath: "/etc/x.toml"}); err != nil {
		h.t.Fatal(err)
	}
	b, err := proto.Marshal(p)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *host) start(id string) *bootapi.BootstrapResult {
	h.t.Helper()
	r, err := h.tryStart(id)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { killServer(filepath.Join(h.root, id)) })
	return r
}

func (h *host) tryStart(id string) (*bootapi.BootstrapResult, error) {
	out, err := h.run(id, "start", h.boot(id))
	if err != nil {
		return nil, err
	}
	var r bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

func serverPID(bundle string) int {
	b, _ := os.ReadFile(filepath.Join(bundle, "shim.pid"))
	pid, _ := strconv.Atoi(string(b))
	return pid
}

func killServer(bundle string) {
	if pid := serverPID(bundle); pid > 1 && pid != os.Getpid() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func connect(t *testing.T, address string) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// waitGone waits until nobody answers: the kernel says when, through the connection.
func waitGone(t *testing.T, address string) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for time.Now().Before(end) {
		conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
		if err != nil {
			return
		}
		_ = conn.SetReadDeadline(end)
		_, _ = conn.Read(make([]byte, 1)) // returns when the shim closes
		conn.Close()
	}
	t.Fatal("the shim still answers")
}

const (
	sandboxSpec   = `{"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"pod"}}`
	containerSpec = `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod"}}`
)

func TestLifeOfAPod(t *testing.T) {
	h := newHost(t)
	pod, ctr := h.bundle("pod", sandboxSpec), h.bundle("ctr", containerSpec)
	if err := syscall.Mkfifo(filepath.Join(pod, "log"), 0o600); err != nil {
		t.Fatal(err)
	}
	logs, err := os.OpenFile(filepath.Join(pod, "log"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()

	r := h.start("pod")
	var caps types.MountCapabilities
	if found, err := r.FindExtension(&caps); err != nil || !found || r.Version != 3 || r.Protocol != "ttrpc" {
		t.Fatalf("answer %v: %v %v", r, found, err)
	}
	if want := SocketAddress(h.sockets, h.grpc, "ns", "pod"); r.Address != want {
		t.Fatalf("address %s, want %s", r.Address, want)
	}
	if st, err := os.Stat(strings.TrimPrefix(r.Address, "unix://")); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", st, err)
	}
	if b, err := os.ReadFile(filepath.Join(pod, "address")); err != nil || string(b) != r.Address {
		t.Fatalf("address file: %s %v", b, err)
	}
	if got := h.start("ctr"); got.Address != r.Address || serverPID(ctr) != 0 {
		t.Fatalf("the container got %v", got)
	}

	c := connect(t, r.Address)
	three, err := task.NewTTRPCTaskClient(c).Connect(limit(t), &task.ConnectRequest{ID: "pod"})
	if err != nil || int(three.ShimPid) != serverPID(pod) || three.Version != "/etc/x.toml" {
		t.Fatalf("version 3: %v %v, want the runtime options to arrive", three, err)
	}
	two, err := taskv2.NewTTRPCTaskClient(c).Connect(limit(t), &taskv2.ConnectRequest{ID: "pod"})
	if err != nil || two.ShimPid != three.ShimPid || two.TaskPid != 5 {
		t.Fatalf("version 2: %v %v", two, err)
	}
	if sid, err := unix.Getsid(serverPID(pod)); err != nil || sid != serverPID(pod) {
		t.Fatalf("session %d: %v", sid, err)
	}
	buf := make([]byte, 100)
	if n, err := logs.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "serving") {
		t.Fatalf("log %q: %v", buf[:n], err)
	}

	// A container's delete leaves the sandbox alone.
	out, err := h.run("ctr", "delete", nil)
	var d task.DeleteResponse
	if err != nil || proto.Unmarshal(out, &d) != nil || d.ExitStatus != 137 || d.Pid != 7 || d.ExitedAt.AsTime().Unix() != 1700000000 {
		t.Fatalf("delete of the container: %v %v", &d, err)
	}
	if b, _ := os.ReadFile(filepath.Join(ctr, "deleted")); string(b) != string(KindContainer) {
		t.Fatalf("deleted as %q", b)
	}
	if _, err := taskv2.NewTTRPCTaskClient(c).Shutdown(limit(t), &taskv2.ShutdownRequest{ID: "pod"}); err != nil {
		t.Fatalf("shutdown: %v, want an answer first", err)
	}
	waitGone(t, r.Address)
	if _, err := os.Lstat(strings.TrimPrefix(r.Address, "unix://")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is left: %v", err)
	}
	if _, err := h.run("pod", "delete", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryStart("ctr"); err == nil || !strings.Contains(err.Error(), "hint:") {
		t.Fatalf("a container without its sandbox: %v", err)
	}
	if left, _ := os.ReadDir(h.sockets); len(left) > 0 {
		t.Fatalf("left in the socket directory: %v", left)
	}
}

func TestStartAfterKill(t *testing.T) {
	h := newHost(t)
	pod := h.bundle("pod", sandboxSpec)
	first := h.start("pod")
	old := serverPID(pod)
	killServer(pod)
	waitGone(t, first.Address)
	if second := h.start("pod"); second.Address != first.Address || serverPID(pod) == old {
		t.Fatalf("second start: %v, process %d after %d", second, serverPID(pod), old)
	}
	connect(t, first.Address)
}

// TestStartTwice: whoever wins, all get the same address, of one server.
func TestStartTwice(t *testing.T) {
	h := newHost(t)
	pod := h.bundle("pod", sandboxSpec)
	var wg sync.WaitGroup
	results := make([]*bootapi.BootstrapResult, 6)
	errs := make([]error, len(results))
	for i := range results {
		wg.Go(func() { results[i], errs[i] = h.tryStart("pod") })
	}
	wg.Wait()
	defer killServer(pod)
	for i, r := range results {
		if errs[i] != nil || r.Address != results[0].Address {
			t.Fatalf("start %d: %v %v", i, r, errs[i])
		}
	}
	for range 3 {
		c, err := task.NewTTRPCTaskClient(connect(t, results[0].Address)).Connect(limit(t), &task.ConnectRequest{})
		if err != nil || int(c.ShimPid) != serverPID(pod) {
			t.Fatalf("served by %v, %v; shim.pid is %d", c, err, serverPID(pod))
		}
	}
}

func TestDeleteEndsAServer(t *testing.T) {
	h := newHost(t)
	pod := h.bundle("pod", sandboxSpec)
	r := h.start("pod")
	if err := os.WriteFile(filepath.Join(pod, "config.json"), []byte(`{"anno`), 0o600); err != nil { // half a bundle
		t.Fatal(err)
	}
	if _, err := h.run("pod", "delete", nil); err != nil {
		t.Fatal(err)
	}
	if answers(t.Context(), r.Address) {
		t.Fatal("the server is still there")
	}
	// The number of another process in shim.pid is not killed.
	if err := os.WriteFile(filepath.Join(pod, "shim.pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.run("pod", "delete", nil); err != nil {
		t.Fatal(err)
	}
}

func TestHalfABundle(t *testing.T) {
	h := newHost(t)
	h.bundle("pod", `{"annotations":{"io.kubernetes.cri.contai`)
	if _, err := h.tryStart("pod"); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Fatalf("got %v", err)
	}
	if left, _ := os.ReadDir(h.sockets); len(left) > 0 {
		t.Fatalf("left in the socket directory: %v", left)
	}
}

func TestIdleServerEnds(t *testing.T) {
	h := newHost(t)
	h.bundle("pod", "")
	t.Setenv("TEST_IDLE", "50ms")
	waitGone(t, h.start("pod").Address)
}

func TestSignalEndsServer(t *testing.T) {
	h := newHost(t)
	pod := h.bundle("pod", "")
	r := h.start("pod")
	// An answer says that signals are handled.
	if _, err := task.NewTTRPCTaskClient(connect(t, r.Address)).Connect(limit(t), &task.ConnectRequest{}); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(serverPID(pod), syscall.SIGUSR1)
	syscall.Kill(serverPID(pod), syscall.SIGTERM)
	waitGone(t, r.Address)
	if left, _ := os.ReadDir(h.sockets); len(left) > 0 {
		t.Fatalf("left in the socket directory: %v", left)
	}
}

func TestInfo(t *testing.T) {
	opts, _ := anypb.New(&runtimeoptions.Options{ConfigPath: "x"})
	b, _ := proto.Marshal(opts)
	cmd := exec.Command(os.Args[0], "-info")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	var i types.RuntimeInfo
	if err != nil || proto.Unmarshal(out, &i) != nil || i.Name != "io.containerd.cloister.v2" || i.Annotations["a"] != "b" || i.Version.Revision != "r" {
		t.Fatalf("%v: %v", &i, err)
	}
	if f := i.Features; f.GetTypeUrl() != featuresType || string(f.GetValue()) != `{"mountOptions":["rro"]}` {
		t.Errorf("features: %v", f)
	}
	if out, err := exec.Command(os.Args[0], "-v").Output(); err != nil || !strings.Contains(string(out), "Version:  1") {
		t.Fatalf("%s: %v", out, err)
	}
}
