package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/shim/stats"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/volume"
)

// Publisher gets the events.
type Publisher interface {
	Publish(event proto.Message)
}

// Config is what a service needs.
type Config struct {
	Namespace string
	// ID is the sandbox's.
	ID     string
	Logger *slog.Logger
	Events Publisher
	// Level, when not nil, is set to what the runtime's configuration says.
	Level *slog.LevelVar
	// Options are the runtime's, for requests that bring none.
	Options *anypb.Any
	// Exit ends the process once its last answer has left.
	Exit func()
	// Root is the folder of all sandboxes; empty is sandbox.Root.
	Root string
	// StartVM replaces the virtual machine monitor; tests use it.
	StartVM func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error)
}

// Service is the task service of one pod.
type Service struct {
	cfg Config
	log *slog.Logger

	mu         sync.Mutex
	pod        *sandbox.Sandbox
	owner      string // the container that the pod ends with; "" with the sandbox service
	containers map[string]*container
	podState   podState
}

// container is one container of the pod.
type container struct {
	id     string
	bundle string
	spec   *specs.Spec
	init   *process

	mu    sync.Mutex
	execs map[string]*process
}

// New makes the service.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, log: cfg.Logger, containers: map[string]*container{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// maxSpec bounds a container's config.json.
const maxSpec = 16 << 20

func readSpec(bundle string) (*specs.Spec, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	if len(text) > maxSpec {
		return nil, fmt.Errorf("the container's specification has more than %d bytes", maxSpec)
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	if spec.Process == nil || spec.Linux == nil {
		return nil, errors.New("the container's specification has no process, or is not for Linux")
	}
	return &spec, nil
}

// Create makes a container; the first one makes the sandbox.
func (s *Service) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if r.GetCheckpoint() != "" {
		return nil, status.Error(codes.Unimplemented, "containers in virtual machines cannot be restored from a checkpoint")
	}
	spec, err := readSpec(r.GetBundle())
	if err != nil {
		return nil, answer(err)
	}
	c := &container{id: r.GetID(), bundle: r.GetBundle(), spec: spec, execs: map[string]*process{}}
	if err := s.add(c); err != nil {
		return nil, err
	}
	pid, err := s.create(ctx, c, r)
	if err != nil {
		s.mu.Lock()
		delete(s.containers, c.id)
		s.mu.Unlock()
		s.log.Error("creating a container", "container", c.id, "error", err)
		return nil, answer(err)
	}
	s.publish(&eventtypes.TaskCreate{
		ContainerID: r.GetID(), Bundle: r.GetBundle(), Rootfs: r.GetRootfs(), Pid: pid, Checkpoint: r.GetCheckpoint(),
		IO: &eventtypes.TaskIO{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
	})
	c.init.follow()
	return &task.CreateTaskResponse{Pid: pid}, nil
}

// Busy says whether there is anything to serve.
func (s *Service) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pod != nil || len(s.containers) > 0 || s.podState.made
}

// add takes the container's name.
func (s *Service) add(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.containers[c.id]; there {
		return status.Errorf(codes.AlreadyExists, "container %s exists already", c.id)
	}
	s.containers[c.id] = c
	return nil
}

func (s *Service) create(ctx context.Context, c *container, r *task.CreateTaskRequest) (uint32, error) {
	pod, made, err := s.podFor(ctx, c, r.GetOptions())
	if err != nil {
		return 0, err
	}
	c.init, err = newProcess(ctx, s, pod, c, "", streams{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, nil)
	if err == nil {
		if err = pod.CreateContainer(ctx, sandbox.Container{ID: c.id, Bundle: c.bundle, Spec: c.spec, Rootfs: mounts(r.GetRootfs())}); err != nil {
			c.init.abandon()
		}
	}
	if err != nil && made {
		s.dropPod(ctx)
	}
	return uint32(pod.PID()), err
}

// podFor is the sandbox that a container belongs to. The first container makes it.
func (s *Service) podFor(ctx context.Context, c *container, options *anypb.Any) (pod *sandbox.Sandbox, made bool, err error) {
	s.mu.Lock()
	pod = s.pod
	s.mu.Unlock()
	kind := cri.Annotations(c.spec.Annotations).Kind()
	switch {
	case pod != nil && kind == cri.KindContainer:
		return pod, false, nil
	case pod != nil:
		return nil, false, fmt.Errorf("the pod %s runs already; this shim serves no other", s.cfg.ID)
	case kind == cri.KindContainer:
		return nil, false, fmt.Errorf("the pod %s of container %s does not run", s.cfg.ID, c.id)
	}
	if pod, err = s.startPod(ctx, podConfig{spec: c.spec}, options); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	s.owner = c.id
	s.mu.Unlock()
	return pod, true, nil
}

// startPod makes the sandbox.
func (s *Service) startPod(ctx context.Context, cfg podConfig, options *anypb.Any) (*sandbox.Sandbox, error) {
	if options == nil {
		options = s.cfg.Options
	}
	effective, err := runtimeconfig.Load(runtimeconfig.Request{
		Getenv: os.Getenv, OptionsType: options.GetTypeUrl(), Options: options.GetValue(), Annotations: cfg.spec.Annotations,
	})
	if err != nil {
		return nil, err
	}
	if level := effective.Config.Level(); s.cfg.Level != nil && level != slog.LevelInfo { // containerd's own wish counts without one
		s.cfg.Level.Set(level)
	}
	for _, text := range effective.Config.Insecure() {
		s.log.Warn("insecure setting", "setting", text)
	}
	pod, err := sandbox.Create(ctx, sandbox.Config{
		Root: s.cfg.Root, Namespace: s.cfg.Namespace, ID: s.cfg.ID, Spec: cfg.spec, NetNS: cfg.netns, DNS: cfg.dns, Runtime: effective, Logger: s.log,
		StartVM: s.cfg.StartVM, OOM: func(id string) { s.publish(&eventtypes.TaskOOM{ContainerID: id}) },
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.pod = pod
	s.mu.Unlock()
	go s.watchPod(pod)
	return pod, nil
}

// watchPod notes why the VM ended; its processes see it by their connection.
func (s *Service) watchPod(pod *sandbox.Sandbox) {
	<-pod.Ended()
	if err := pod.Err(); err != nil {
		s.log.Error("the virtual machine has ended", "sandbox", s.cfg.ID, "error", err)
	}
	s.podEnded()
}

// dropPod removes the sandbox after its first container could not be made.
func (s *Service) dropPod(ctx context.Context) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.stopPod(clean); err != nil {
		s.log.Error("removing the sandbox", "sandbox", s.cfg.ID, "error", err)
	}
}

// removeTimeout bounds what is done to clean up when the caller's time is over.
const removeTimeout = 30 * time.Second

// stopPod ends and removes the sandbox. One that cannot be removed stays, so that the next call tries again.
func (s *Service) stopPod(ctx context.Context) error {
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil
	}
	if err := pod.Stop(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.pod, s.owner = nil, ""
	s.mu.Unlock()
	return nil
}

func mounts(list []*types.Mount) []volume.Mount {
	var out []volume.Mount
	for _, m := range list {
		out = append(out, volume.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}

func (s *Service) publish(event proto.Message) { s.cfg.Events.Publish(event) }

// container finds a container that has been made.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.init == nil {
		return nil, notFound("container %s is not in this pod", id)
	}
	return c, nil
}

// process finds a process; an empty exec is the container's first.
func (s *Service) process(id, exec string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil || exec == "" {
		if c != nil {
			return c, c.init, err
		}
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[exec]
	if p == nil {
		return nil, nil, notFound("process %s is not in container %s", exec, id)
	}
	return c, p, nil
}

// State tells about a process.
func (s *Service) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	st := p.state()
	return &task.StateResponse{
		ID: r.GetID(), Bundle: c.bundle, Pid: st.pid, Status: st.status, Stdin: p.io.stdin, Stdout: p.io.stdout, Stderr: p.io.stderr,
		Terminal: p.io.terminal, ExitStatus: st.code, ExitedAt: stamp(st.exited), ExecID: r.GetExecID(),
	}, nil
}

// stamp leaves out the time of what has not happened.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Start lets a process run.
func (s *Service) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	pid, err := p.start(ctx)
	if err != nil {
		s.log.Error("starting a process", "container", c.id, "exec", p.exec, "error", err)
		return nil, answer(err)
	}
	return &task.StartResponse{Pid: pid}, nil
}

// Delete forgets a process that has ended; with a container's first process the container goes, with the pod's first container the pod.
func (s *Service) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	st := p.state()
	if st.status == tasktypes.Status_RUNNING || st.status == tasktypes.Status_PAUSED {
		return nil, precondition("process %s of container %s runs: it has to end before it is deleted", p.name(), c.id)
	}
	if p != c.init {
		p.drained(ctx)
		c.mu.Lock()
		delete(c.execs, r.GetExecID())
		c.mu.Unlock()
		return p.deleted(), nil
	}
	if err := s.deleteContainer(ctx, c); err != nil {
		s.log.Error("deleting a container", "container", c.id, "error", err)
		return nil, answer(err)
	}
	d := p.deleted()
	s.publish(&eventtypes.TaskDelete{
		ContainerID: c.id, ID: c.id, Pid: d.GetPid(), ExitStatus: d.GetExitStatus(), ExitedAt: d.GetExitedAt(),
	})
	return d, nil
}

func (s *Service) deleteContainer(ctx context.Context, c *container) error {
	c.init.drained(ctx)
	s.mu.Lock()
	pod, last := s.pod, s.owner == c.id
	s.mu.Unlock()
	if pod != nil {
		var err error
		if last {
			err = s.stopPod(ctx) // whatever is left inside ends with it
		} else {
			err = pod.RemoveContainer(ctx, c.id)
		}
		if err != nil {
			return err
		}
	}
	c.init.abandon()
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	return nil
}

// Pids names the monitor for all processes of the pod: their own numbers are those of the guest.
func (s *Service) Pids(_ context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	return &task.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: c.init.state().pid}}}, nil
}

// Pause freezes a container.
func (s *Service) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if err := c.init.freeze(ctx, true); err != nil {
		return nil, answer(err)
	}
	s.publish(&eventtypes.TaskPaused{ContainerID: c.id})
	return &emptypb.Empty{}, nil
}

// Resume thaws a container.
func (s *Service) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if err := c.init.freeze(ctx, false); err != nil {
		return nil, answer(err)
	}
	s.publish(&eventtypes.TaskResumed{ContainerID: c.id})
	return &emptypb.Empty{}, nil
}

// Checkpoint is not possible: the state of a confidential guest cannot be read, and that of others is not portable.
func (s *Service) Checkpoint(context.Context, *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.Unimplemented, "containers in virtual machines have no checkpoints")
}

// Kill sends a signal.
func (s *Service) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if err := p.kill(ctx, r.GetSignal(), r.GetAll()); err != nil {
		return nil, answer(err)
	}
	return &emptypb.Empty{}, nil
}

// Exec remembers a process that Start will run.
func (s *Service) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if r.GetExecID() == "" || r.GetExecID() == r.GetID() || len(r.GetExecID()) > 1024 {
		return nil, invalid("%.100q cannot name a process of container %s", r.GetExecID(), c.id)
	}
	var spec specs.Process
	if err := json.Unmarshal(r.GetSpec().GetValue(), &spec); err != nil {
		return nil, invalid("reading the process to run in container %s: %v", c.id, err)
	}
	spec.Terminal = r.GetTerminal()
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil, precondition("the pod %s does not run", s.cfg.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.execs[r.GetExecID()]; there {
		return nil, status.Errorf(codes.AlreadyExists, "process %s exists already in container %s", r.GetExecID(), c.id)
	}
	p, err := newProcess(ctx, s, pod, c, r.GetExecID(), streams{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, &spec)
	if err != nil {
		return nil, answer(err)
	}
	c.execs[r.GetExecID()] = p
	s.publish(&eventtypes.TaskExecAdded{ContainerID: c.id, ExecID: p.exec})
	return &emptypb.Empty{}, nil
}

// ResizePty sets the size of a terminal.
func (s *Service) ResizePty(ctx context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, answer(p.resize(ctx, r.GetHeight(), r.GetWidth()))
}

// CloseIO says that no more input comes.
func (s *Service) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if r.GetStdin() {
		p.closeStdin()
	}
	return &emptypb.Empty{}, nil
}

// Update changes limits.
func (s *Service) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	res, err := sandbox.Resources(r.GetResources().GetValue())
	if err != nil {
		return nil, invalid("reading the new limits of container %s: %v", c.id, err)
	}
	return &emptypb.Empty{}, answer(c.init.pod.UpdateContainer(ctx, c.id, res))
}

// Wait waits for the end of a process.
func (s *Service) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return nil, answer(ctx.Err())
	}
	st := p.state()
	return &task.WaitResponse{ExitStatus: st.code, ExitedAt: stamp(st.exited)}, nil
}

// Stats is what a container uses; for the pod's own container, what the whole pod uses on the host.
func (s *Service) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	a, err := metrics(ctx, c.init.pod, c.id, cri.Annotations(c.spec.Annotations).Kind() == cri.KindSandbox)
	if err != nil {
		return nil, answer(err)
	}
	return &task.StatsResponse{Stats: a}, nil
}

// metrics are the figures of a container from the guest, or with whole those of the pod on the host.
func metrics(ctx context.Context, pod *sandbox.Sandbox, id string, whole bool) (*anypb.Any, error) {
	host, err := pod.HostStats(ctx)
	if err != nil {
		return nil, err
	}
	if whole {
		if host == nil {
			host = &cgroup.Stats{}
		}
		return stats.Sandbox(*host, nil, cgroup.Mode())
	}
	r, err := pod.Stats(ctx, id)
	if err != nil {
		return nil, err
	}
	return stats.Container(r, host, cgroup.Mode())
}

// Connect names the processes on the host.
func (s *Service) Connect(_ context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	out := &task.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.GetID()); err == nil {
		out.TaskPid = c.init.state().pid
	}
	return out, nil
}

// Shutdown ends the process when nothing is left to serve.
func (s *Service) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	left := len(s.containers)
	if s.podState.made && !r.GetNow() {
		left++ // the sandbox service has a request of its own for the end
	}
	s.mu.Unlock()
	if left > 0 && !r.GetNow() {
		return &emptypb.Empty{}, nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.stopPod(clean); err != nil {
		s.log.Error("removing the sandbox", "sandbox", s.cfg.ID, "error", err)
	}
	s.cfg.Exit()
	return &emptypb.Empty{}, nil
}
