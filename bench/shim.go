package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// shimNamespace is containerd's namespace of the pods that the benchmark makes.
const shimNamespace = "cloister-bench"

// annotations of CRI that say what a container is.
const (
	annotationKind    = "io.kubernetes.cri.container-type"
	annotationSandbox = "io.kubernetes.cri.sandbox-id"
)

// shims drives containerd shims as containerd does, without containerd: what is measured is the shim alone.
type shims struct {
	program string
	dir     string // bundles, fifos, the root file system, the events' socket
	config  string
	events  *ttrpc.Server
	sockets []string // of the shims so far
	n       int
}

// newShims makes a root file system of the distribution's static busybox, and a place that takes the shims' events.
func newShims(program, config string) (*shims, error) {
	if !filepath.IsAbs(program) {
		wd, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		program = filepath.Join(wd, program)
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("the shim: %w (hint: make build)", err)
	}
	dir, err := os.MkdirTemp("", "cloister-bench-shim-")
	if err != nil {
		return nil, err
	}
	s := &shims{program: program, dir: dir, config: filepath.Join(dir, "runtime.toml")}
	if err := s.prepare(config); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *shims) prepare(config string) error {
	if err := os.WriteFile(s.config, []byte(config), 0o644); err != nil {
		return err
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(s.dir, "rootfs", d), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (hint: apt-get install busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "rootfs/bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep", "true", "cat", "head", "wc"} {
		if err := os.Symlink("busybox", filepath.Join(s.dir, "rootfs/bin", name)); err != nil {
			return err
		}
	}
	l, err := net.Listen("unix", filepath.Join(s.dir, "events.sock"))
	if err != nil {
		return err
	}
	if s.events, err = ttrpc.NewServer(); err != nil {
		return err
	}
	ttrpcevents.RegisterTTRPCEventsService(s.events, takeEvents{})
	go func() { _ = s.events.Serve(context.Background(), l) }()
	return nil
}

func (s *shims) close() {
	if s.events != nil {
		_ = s.events.Close()
	}
	os.RemoveAll(s.dir)
}

// takeEvents is containerd's place for events.
type takeEvents struct{}

func (takeEvents) Forward(context.Context, *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// shimPod is a pod with its shim.
type shimPod struct {
	s      *shims
	id     string
	client *ttrpc.Client
	task   task.TTRPCTaskService
	pid    int // the shim's
}

// start makes a pod as containerd's CRI does: the shim, its sandbox, and the pause container in it.
func (s *shims) start(ctx context.Context) (*shimPod, error) {
	s.n++
	p := &shimPod{s: s, id: fmt.Sprintf("bench-%d-%d", os.Getpid(), s.n)}
	if err := s.bundle(p.id, map[string]string{annotationKind: "sandbox", annotationSandbox: p.id}); err != nil {
		return nil, err
	}
	address, err := s.run(ctx, p.id, "start")
	if err != nil {
		return nil, err
	}
	socket := strings.TrimPrefix(strings.TrimSpace(address), "unix://")
	s.sockets = append(s.sockets, socket)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	p.client = ttrpc.NewClient(conn)
	p.task = task.NewTTRPCTaskClient(p.client)
	c, err := p.task.Connect(ctx, &task.ConnectRequest{ID: p.id})
	if err != nil {
		return nil, errors.Join(err, p.stop(ctx))
	}
	p.pid = int(c.GetShimPid())
	if err := p.container(ctx, p.id); err != nil {
		return nil, errors.Join(err, p.stop(ctx))
	}
	return p, nil
}

// run calls the shim's program with a verb, as containerd does.
func (s *shims) run(ctx context.Context, id, verb string) (string, error) {
	cmd := exec.CommandContext(ctx, s.program, "-namespace", shimNamespace, "-id", id, "-address", filepath.Join(s.dir, "containerd.sock"), verb)
	if verb == "delete" {
		cmd.Args = append(cmd.Args[:len(cmd.Args)-1], "-bundle", s.path(id), verb)
	}
	cmd.Dir = s.path(id)
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+filepath.Join(s.dir, "events.sock"), "CLOISTER_RUNTIME_CONFIG="+s.config)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("shim %s: %w: %s", verb, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

func (s *shims) path(id string) string { return filepath.Join(s.dir, "bundles", id) }

// bundle writes what containerd gives a container: its specification, and an empty folder for its root.
func (s *shims) bundle(id string, annotations map[string]string) error {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	spec := specs.Spec{
		Version: specs.Version, Annotations: annotations, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sleep", "100000"}, Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + shimNamespace + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
			Resources:   &specs.LinuxResources{},
		},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.path(id), "rootfs"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.path(id), "config.json"), text, 0o644)
}

// container creates and starts a container whose bundle is there.
func (p *shimPod) container(ctx context.Context, id string) error {
	_, err := p.task.Create(ctx, &task.CreateTaskRequest{ID: id, Bundle: p.s.path(id), Rootfs: []*types.Mount{
		{Type: "bind", Source: filepath.Join(p.s.dir, "rootfs"), Options: []string{"rbind", "rw"}}}})
	if err != nil {
		return fmt.Errorf("creating container %s: %w", id, err)
	}
	if _, err := p.task.Start(ctx, &task.StartRequest{ID: id}); err != nil {
		return fmt.Errorf("starting container %s: %w", id, err)
	}
	return nil
}

// add makes one more container.
func (p *shimPod) add(ctx context.Context, name string) (id string, took time.Duration, err error) {
	id = p.id + "-" + name
	if err := p.s.bundle(id, map[string]string{annotationKind: "container", annotationSandbox: p.id}); err != nil {
		return "", 0, err
	}
	began := time.Now()
	if _, err := p.s.run(ctx, id, "start"); err != nil { // containerd asks for the shim of each container
		return "", 0, err
	}
	err = p.container(ctx, id)
	return id, time.Since(began), err
}

// exec runs a command in a container until it has ended. stdin and stdout are files of the host, or empty.
func (p *shimPod) exec(ctx context.Context, container, name, stdin, stdout string, args ...string) error {
	spec, err := json.Marshal(specs.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/"})
	if err != nil {
		return err
	}
	_, err = p.task.Exec(ctx, &task.ExecProcessRequest{ID: container, ExecID: name, Stdin: stdin, Stdout: stdout,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec}})
	if err != nil {
		return fmt.Errorf("exec %s: %w", args[0], err)
	}
	if _, err := p.task.Start(ctx, &task.StartRequest{ID: container, ExecID: name}); err != nil {
		return fmt.Errorf("exec %s: %w", args[0], err)
	}
	w, err := p.task.Wait(ctx, &task.WaitRequest{ID: container, ExecID: name})
	if err != nil {
		return fmt.Errorf("exec %s: %w", args[0], err)
	}
	if _, err := p.task.Delete(ctx, &task.DeleteRequest{ID: container, ExecID: name}); err != nil {
		return fmt.Errorf("exec %s: %w", args[0], err)
	}
	if w.GetExitStatus() != 0 {
		return fmt.Errorf("exec %s ended with %d", args[0], w.GetExitStatus())
	}
	return nil
}

// read runs a command and takes its output from a fifo; it returns how much that was, and how long from the first byte to the last.
func (p *shimPod) read(ctx context.Context, container, name string, args ...string) (int64, time.Duration, error) {
	fifo := filepath.Join(p.s.dir, name)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return 0, 0, err
	}
	defer os.Remove(fifo)
	type result struct {
		n    int64
		took time.Duration
		err  error
	}
	done := make(chan result, 1)
	go func() {
		f, err := os.Open(fifo)
		if err != nil {
			done <- result{err: err}
			return
		}
		defer f.Close()
		first := make([]byte, 1)
		if _, err := io.ReadFull(f, first); err != nil {
			done <- result{err: err}
			return
		}
		began := time.Now()
		n, err := io.Copy(io.Discard, f)
		done <- result{n + 1, time.Since(began), err}
	}()
	if err := p.exec(ctx, container, name, "", fifo, args...); err != nil {
		if f, oerr := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0); oerr == nil { // lets the reader go
			f.Close()
		}
		return 0, 0, err
	}
	r := <-done
	return r.n, r.took, r.err
}

// write runs a command that reads its input to the end, and gives it so many bytes by a fifo.
func (p *shimPod) write(ctx context.Context, container, name string, size int64, args ...string) (time.Duration, error) {
	fifo := filepath.Join(p.s.dir, name)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(fifo)
	// For reading and writing: opening waits for nobody, and the shim finds a writer.
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		chunk := make([]byte, 64<<10)
		var err error
		for left := size; left > 0 && err == nil; left -= int64(len(chunk)) {
			_, err = f.Write(chunk[:min(left, int64(len(chunk)))])
		}
		f.Close()
		if _, cerr := p.task.CloseIO(ctx, &task.CloseIORequest{ID: container, ExecID: name, Stdin: true}); err == nil {
			err = cerr
		}
		sent <- err
	}()
	err = p.exec(ctx, container, name, fifo, "", args...)
	if err != nil {
		f.Close()
	}
	return time.Since(began), errors.Join(err, <-sent)
}

// remove ends a container.
func (p *shimPod) remove(ctx context.Context, id string) error {
	if _, err := p.task.Kill(ctx, &task.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true}); err != nil {
		return fmt.Errorf("killing container %s: %w", id, err)
	}
	if _, err := p.task.Wait(ctx, &task.WaitRequest{ID: id}); err != nil {
		return fmt.Errorf("waiting for container %s: %w", id, err)
	}
	if _, err := p.task.Delete(ctx, &task.DeleteRequest{ID: id}); err != nil {
		return fmt.Errorf("deleting container %s: %w", id, err)
	}
	return nil
}

// stop ends the pod as containerd does it, cleaning up included. It does all of it, whatever fails.
func (p *shimPod) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootDeadline)
	defer cancel()
	var errs []error
	if p.pid > 0 {
		errs = append(errs, p.remove(ctx, p.id))
	}
	if _, err := p.task.Shutdown(ctx, &task.ShutdownRequest{ID: p.id, Now: true}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		errs = append(errs, fmt.Errorf("ending the shim: %w", err))
	}
	p.client.Close()
	if _, err := p.s.run(ctx, p.id, "delete"); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pss is the part of memory that a process has for itself, in bytes: what it shares counts in parts.
func pss(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "Pss:" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no Pss", pid)
}

// belongings is all on this host that is, or was left, of the pods of this process, by kind.
func (s *shims) belongings() []string {
	var out []string
	ours := func(text string) bool {
		return strings.Contains(text, fmt.Sprintf("bench-%d-", os.Getpid())) || strings.Contains(text, s.dir+"/bundles")
	}
	for _, root := range []string{"/run/cloister", "/sys/fs/cgroup"} {
		_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && ours(name) {
				out = append(out, "file "+name)
			}
			return nil
		})
	}
	for _, socket := range s.sockets {
		if _, err := os.Lstat(socket); err == nil {
			out = append(out, "file "+socket)
		}
	}
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if ours(line) {
				out = append(out, "mount "+strings.TrimSpace(line))
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && ours(string(text)) {
			out = append(out, "process "+strings.ReplaceAll(string(text[:min(len(text), 200)]), "\x00", " "))
		}
	}
	return out
}
