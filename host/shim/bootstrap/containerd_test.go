package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/shim/events"
	"github.com/cloister/cloister/host/shim/stats"
	"github.com/cloister/cloister/host/shim/stdio"
	"github.com/cloister/cloister/internal/needs"
)

// fakeTask is a task service for a real containerd: a container says hello and ends with 3, or, if its name begins with slow, with 137 when it
// is killed.
type fakeTask struct {
	testTask
	pub  *events.Publisher
	mu   sync.Mutex
	made map[string]*fakeContainer
}

type fakeContainer struct {
	streams *stdio.Streams
	state   tasktypes.Status
	kill    chan struct{}
	once    sync.Once
	ended   chan struct{}
	code    uint32
	at      time.Time
}

type hello struct {
	*fakeContainer
	text io.Reader
}

func (h *hello) ReadStdout(_ context.Context, max int) ([]byte, error) {
	b := make([]byte, max)
	n, err := h.text.Read(b)
	if err != nil {
		<-h.kill
	}
	return b[:n], err
}
func (h *hello) ReadStderr(context.Context, int) ([]byte, error)     { return nil, io.EOF }
func (h *hello) WriteStdin(_ context.Context, p []byte) (int, error) { return len(p), nil }
func (h *hello) CloseStdin(context.Context) error                    { return nil }

func newFakeTask(s *Server) *fakeTask {
	return &fakeTask{testTask: testTask{s: s}, made: map[string]*fakeContainer{}, pub: events.New(events.Config{Namespace: s.Params.Namespace,
		TTRPCAddress: s.Params.TTRPCAddress})}
}

func (t *fakeTask) get(id string) (*fakeContainer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.made[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", id)
}

func (t *fakeTask) Connect(context.Context, *task.ConnectRequest) (*task.ConnectResponse, error) {
	return &task.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(os.Getpid())}, nil
}

func (t *fakeTask) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	s, err := stdio.Open(ctx, stdio.Config{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal, ContainerID: r.ID})
	if err != nil {
		return nil, err
	}
	c := &fakeContainer{streams: s, state: tasktypes.Status_CREATED, kill: make(chan struct{}), ended: make(chan struct{}), code: 3}
	t.mu.Lock()
	t.made[r.ID] = c
	t.mu.Unlock()
	t.pub.Publish(&eventtypes.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Pid: uint32(os.Getpid())})
	return &task.CreateTaskResponse{Pid: uint32(os.Getpid())}, nil
}

func (t *fakeTask) Start(_ context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	c, err := t.get(r.ID)
	if err != nil {
		return nil, err
	}
	t.pub.Publish(&eventtypes.TaskStart{ContainerID: r.ID, Pid: uint32(os.Getpid())})
	if !strings.HasPrefix(r.ID, "slow") {
		c.once.Do(func() { close(c.kill) })
	}
	t.mu.Lock()
	c.state = tasktypes.Status_RUNNING
	t.mu.Unlock()
	go func() {
		c.streams.Copy(context.Background(), &hello{c, strings.NewReader("hello from " + r.ID + "\n")})
		t.mu.Lock()
		c.state, c.at = tasktypes.Status_STOPPED, time.Now()
		t.mu.Unlock()
		t.pub.Publish(&eventtypes.TaskExit{ContainerID: r.ID, ID: r.ID, Pid: uint32(os.Getpid()), ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)})
		close(c.ended)
	}()
	return &task.StartResponse{Pid: uint32(os.Getpid())}, nil
}

func (t *fakeTask) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	c, err := t.get(r.ID)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return &task.StateResponse{ID: r.ID, Pid: uint32(os.Getpid()), Status: c.state, ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)}, nil
}

func (t *fakeTask) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	c, err := t.get(r.ID)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ended:
		return &task.WaitResponse{ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *fakeTask) Kill(_ context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	c, err := t.get(r.ID)
	if err == nil {
		c.once.Do(func() { c.code = 128 + r.Signal; close(c.kill) })
	}
	return &emptypb.Empty{}, err
}

func (t *fakeTask) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	c, err := t.get(r.ID)
	if err == nil {
		c.streams.CloseStdin()
	}
	return &emptypb.Empty{}, err
}

func (t *fakeTask) Pids(_ context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	_, err := t.get(r.ID)
	return &task.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: uint32(os.Getpid())}}}, err
}

func (t *fakeTask) Stats(context.Context, *task.StatsRequest) (*task.StatsResponse, error) {
	a, err := stats.Sandbox(cgroup.Stats{Memory: 123456789}, nil, cgroup.Mode())
	return &task.StatsResponse{Stats: a}, err
}

func (t *fakeTask) Delete(_ context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	c, err := t.get(r.ID)
	if err != nil {
		return nil, err
	}
	c.streams.Close()
	t.mu.Lock()
	delete(t.made, r.ID)
	t.mu.Unlock()
	t.pub.Publish(&eventtypes.TaskDelete{ContainerID: r.ID, Pid: uint32(os.Getpid()), ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)})
	return &task.DeleteResponse{Pid: uint32(os.Getpid()), ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)}, nil
}

func (t *fakeTask) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	t.mu.Lock()
	left := len(t.made)
	t.mu.Unlock()
	if left > 0 {
		return &emptypb.Empty{}, nil
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		t.pub.Close(ctx)
		t.s.Shutdown()
	}()
	return &emptypb.Empty{}, nil
}

// daemon is a real containerd with directories of its own.
type daemon struct {
	t        *testing.T
	bin, dir string
	cmd      *exec.Cmd
	log      safeBuffer
}

// safeBuffer is read while containerd writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (d *daemon) start() {
	d.t.Helper()
	config := filepath.Join(d.dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", "+
		"\"io.containerd.cri.v1.images\", \"io.containerd.nri.v1.nri\", \"io.containerd.snapshotter.v1.devmapper\"]\n[grpc]\naddress = %q\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = %q\n",
		d.dir+"/root", d.dir+"/state", d.dir+"/c.sock", d.dir+"/opt")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.cmd = exec.Command(filepath.Join(d.bin, "containerd"), "--config", config, "--log-level", "info")
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.WaitDelay = time.Second
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	end := time.Now().Add(60 * time.Second)
	for {
		if out, err := d.ctr("version"); err == nil {
			return
		} else if time.Now().After(end) {
			d.t.Fatalf("containerd does not start: %s %v\n%s", out, err, d.log.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (d *daemon) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

func (d *daemon) ctr(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ctr"), append([]string{"-a", d.dir + "/c.sock", "-n", "test"}, args...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// until waits for an output of ctr.
func (d *daemon) until(good func(string) bool, args ...string) {
	d.t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		out, err := d.ctr(args...)
		if err == nil && good(out) {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("ctr %v: %s %v\n%s", args, out, err, d.log.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestContainerd runs the shim under the containerd in PATH and the one in the directory CLOISTER_TEST_CONTAINERD.
func TestContainerd(t *testing.T) {
	needs.Root(t, "containerd")
	var bins []string
	for _, dir := range append(filepath.SplitList(os.Getenv("CLOISTER_TEST_CONTAINERD")), "") {
		if path, err := exec.LookPath(filepath.Join(dir, "containerd")); err == nil {
			bins = append(bins, filepath.Dir(path))
			t.Run(fmt.Sprintf("life %d", len(bins)), func(t *testing.T) { underContainerd(t, filepath.Dir(path)) })
		}
	}
	if len(bins) == 0 {
		needs.Missing(t, "containerd")
	}
	if len(bins) > 1 {
		t.Run("update", func(t *testing.T) { acrossAnUpdate(t, bins[len(bins)-1], bins[0]) })
	}
}

// acrossAnUpdate replaces containerd under a running shim.
func acrossAnUpdate(t *testing.T, from, to string) {
	d, shim, rootfs := newDaemon(t, from)
	if out, err := d.ctr("run", "-d", "--runtime", shim, "--null-io", "--rootfs", rootfs, "slow", "/x"); err != nil {
		t.Fatalf("run -d: %s %v\n%s", out, err, d.log.String())
	}
	d.kill()
	d.bin = to
	d.start()
	d.until(func(s string) bool { return strings.Contains(s, "RUNNING") }, "task", "ls")
	if out, err := d.ctr("task", "kill", "-s", "9", "slow"); err != nil {
		t.Fatalf("kill: %s %v", out, err)
	}
	d.until(func(s string) bool { return strings.Contains(s, "STOPPED") }, "task", "ls")
	d.ctr("task", "delete", "slow") // ctr's exit code is the task's
	d.until(func(s string) bool { return !strings.Contains(s, "slow") }, "task", "ls")
}

func newDaemon(t *testing.T, bin string) (d *daemon, shim, rootfs string) {
	dir, err := os.MkdirTemp("", "shimtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if shim, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	d = &daemon{t: t, bin: bin, dir: dir}
	t.Cleanup(func() {
		bundles, _ := filepath.Glob(dir + "/state/io.containerd.runtime.v2.task/test/*")
		for _, b := range bundles {
			killServer(b)
		}
		d.kill()
	})
	d.start()
	version, _ := d.ctr("version")
	t.Log(version)
	rootfs = filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	return d, shim, rootfs
}

func underContainerd(t *testing.T, bin string) {
	d, shim, rootfs := newDaemon(t, bin)
	dir := d.dir
	out, err := d.ctr("run", "--rm", "--runtime", shim, "--rootfs", rootfs, "one", "/x")
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != 3 || !strings.HasSuffix(out, "hello from one\n") {
		t.Fatalf("run: %q %v\n%s", out, err, d.log.String())
	}

	if out, err := d.ctr("run", "-d", "--runtime", shim, "--log-uri", "file://"+dir+"/log", "--rootfs", rootfs, "slow", "/x"); err != nil {
		t.Fatalf("run -d: %s %v\n%s", out, err, d.log.String())
	}
	d.until(func(s string) bool { return strings.Contains(s, "123456789") }, "task", "metrics", "slow")
	d.kill()
	d.start()
	d.until(func(s string) bool { return strings.Contains(s, "RUNNING") }, "task", "ls")
	if out, err := d.ctr("task", "kill", "-s", "9", "slow"); err != nil {
		t.Fatalf("kill: %s %v", out, err)
	}
	d.until(func(s string) bool { return strings.Contains(s, "STOPPED") }, "task", "ls")
	if out, err := d.ctr("task", "delete", "slow"); !strings.Contains(fmt.Sprint(out, err), "137") && err != nil {
		t.Fatalf("delete: %s %v", out, err)
	}
	if b, err := os.ReadFile(dir + "/log"); err != nil || string(b) != "hello from slow\n" {
		t.Errorf("log %q %v", b, err)
	}

	// A shim that is killed: containerd calls delete, and nothing is left.
	if out, err := d.ctr("run", "-d", "--runtime", shim, "--null-io", "--rootfs", rootfs, "slow2", "/x"); err != nil {
		t.Fatalf("run -d: %s %v\n%s", out, err, d.log.String())
	}
	killServer(filepath.Join(dir, "state", "io.containerd.runtime.v2.task", "test", "slow2"))
	d.until(func(s string) bool { return !strings.Contains(s, "slow2") }, "task", "ls")
	end := time.Now().Add(20 * time.Second)
	for _, id := range []string{"one", "slow", "slow2"} {
		path := strings.TrimPrefix(SocketAddress("", dir+"/c.sock", "test", id), "unix://")
		for {
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
				break
			} else if time.Now().After(end) {
				t.Fatalf("the socket of %s is left: %v", id, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
