package shim

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/vmm"
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
	// Self is this program; see sandbox.Config.
	Self string
	// StartVM replaces the virtual machine monitor, the others what is said at killTime, removeTime and statsTime; tests use them.
	StartVM                         func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error)
	KillTime, RemoveTime, StatsTime time.Duration
}

// Service is the task service of one pod.
type Service struct {
	cfg Config
	log *slog.Logger

	mu         sync.Mutex
	pod        *sandbox.Sandbox
	start      *podStart // not nil while pod is being made
	down       bool      // no pod is made any more
	owner      string    // the container that the pod ends with; "" with the sandbox service
	containers map[string]*container
	podState   podState
	silent     time.Time // when the guest gave no figures in time
}

// container is one container of the pod.
type container struct {
	id     string
	bundle string
	spec   *specs.Spec
	init   *process // nil until it is made; the service's lock guards it

	deleting sync.Mutex // held by the one deletion
	kept     time.Time  // when the guest did not remove it for the first time; deleting guards it
	ooms     atomic.Uint64

	mu    sync.Mutex
	execs map[string]*process // nil is one that is being made
}

// podStart is a sandbox that is being made.
type podStart struct {
	cancel context.CancelCauseFunc
	ended  chan struct{}
}

// New makes the service.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, log: cfg.Logger, containers: map[string]*container{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Busy says whether there is anything to serve.
func (s *Service) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pod != nil || len(s.containers) > 0 || s.podState.made
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
		return nil, nil, notFound("process %.100s is not in container %s", exec, id)
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
		p.cancel(killed) // one that was never started: nobody waits for it any longer
		p.drained(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.execs[r.GetExecID()] != p {
			return nil, notFound("process %s is not in container %s", p.exec, c.id)
		}
		delete(c.execs, r.GetExecID())
		return p.deleted(), nil
	}
	c.deleting.Lock()
	defer c.deleting.Unlock()
	if _, err := s.container(c.id); err != nil {
		return nil, err // somebody else was faster
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
	c.init.discard(ctx)
	c.init.drained(ctx)
	s.mu.Lock()
	pod, last := s.pod, s.owner == c.id
	s.mu.Unlock()
	if pod != nil {
		var err error
		if last {
			err = s.stopPod(ctx) // whatever is left inside ends with it
		} else {
			err = s.removeInGuest(ctx, pod, c)
		}
		if err != nil {
			return err
		}
	}
	c.init.abandon()
	c.mu.Lock()
	for _, p := range c.execs {
		if p != nil {
			p.cancel(killed) // those that were never started have nothing else that ends them
		}
	}
	c.mu.Unlock()
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	return nil
}

// removeTime is how long a guest may keep a container that is deleted.
const removeTime = 10 * time.Minute

// removeInGuest removes one container of a pod that goes on. containerd tries until it succeeds, and takes the container for running so long: a
// guest that never lets go would keep the pod.
func (s *Service) removeInGuest(ctx context.Context, pod *sandbox.Sandbox, c *container) error {
	err := pod.RemoveContainer(ctx, c.id)
	switch {
	case err == nil:
	case c.kept.IsZero():
		c.kept = time.Now()
	case time.Since(c.kept) > cmp.Or(s.cfg.RemoveTime, removeTime):
		pod.End(fmt.Errorf("container %s was to be removed, and the guest keeps it: %w", c.id, err))
	}
	return err
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
	if err := s.shutPod(clean); err != nil {
		s.log.Error("removing the sandbox", "sandbox", s.cfg.ID, "error", err)
	}
	s.podEnded(false)
	s.cfg.Exit()
	return &emptypb.Empty{}, nil
}
