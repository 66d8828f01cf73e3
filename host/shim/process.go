package shim

import (
	"context"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/shim/stdio"
)

// lostCode is the exit code of a process whose end nobody could tell: the VM ended with it.
const lostCode = 255

// streams are where containerd wants the input and output of a process.
type streams struct {
	stdin, stdout, stderr string
	terminal              bool
}

// process is the first process of a container, or one that runs beside it.
type process struct {
	service   *Service
	pod       *sandbox.Sandbox
	container *container
	exec      string // "" for the first
	io        streams
	spec      *specs.Process // of an exec
	copy      *stdio.Streams

	ended   chan struct{} // closed when the process has ended
	copied  chan struct{} // closed when its output has been passed on
	follows sync.Once
	quiet   sync.Once

	starting sync.Mutex // held while it starts, so that its end is not told before its start

	mu     sync.Mutex
	status tasktypes.Status
	code   uint32
	exited time.Time
}

// processState is a process at one moment.
type processState struct {
	status tasktypes.Status
	pid    uint32
	code   uint32
	exited time.Time
}

// newProcess opens the streams.
func newProcess(ctx context.Context, s *Service, pod *sandbox.Sandbox, c *container, exec string, io streams, spec *specs.Process) (*process, error) {
	p := &process{
		service: s, pod: pod, container: c, exec: exec, io: io, spec: spec, status: tasktypes.Status_CREATED,
		ended: make(chan struct{}), copied: make(chan struct{}),
	}
	var err error
	p.copy, err = stdio.Open(ctx, stdio.Config{
		Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Terminal: io.terminal, ContainerID: c.id, Namespace: s.cfg.Namespace,
	})
	return p, err
}

// guestID is the name of the process in the guest.
func (p *process) guestID() string {
	if p.exec == "" {
		return p.container.id
	}
	return p.exec
}

// name is for messages.
func (p *process) name() string { return p.guestID() }

func (p *process) state() processState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := processState{status: p.status, code: p.code, exited: p.exited}
	if p.exec == "" || p.status != tasktypes.Status_CREATED {
		st.pid = uint32(p.pod.PID())
	}
	return st
}

// follow copies the streams and waits for the end, beside everything else. The process exists in the guest.
func (p *process) follow() {
	p.follows.Do(func() {
		life, end := context.WithCancel(context.Background())
		go func() {
			defer close(p.copied)
			if err := p.copy.Copy(life, stdio.FromAgent(p.pod.Agent(), p.container.id, p.guestID())); err != nil {
				p.service.log.Warn("copying the output of a process", "container", p.container.id, "exec", p.exec, "error", err)
			}
		}()
		go func() {
			code, err := p.pod.Wait(life, p.container.id, p.guestID())
			if err != nil {
				p.service.log.Warn("a process was lost", "container", p.container.id, "exec", p.exec, "error", err)
				code = lostCode
			} else if p.exec == "" {
				p.pod.CollectTermination(life, p.container.id)
			}
			p.finish(uint32(code))
			// What the process has written arrives after its end; what a child of it may write later is not waited for.
			p.copy.Exited(drainTimeout)
			<-p.copied
			end()
		}()
	})
}

// drainTimeout is how long output may still arrive after the end of a process.
const drainTimeout = 10 * time.Second

// finish records and publishes the end. When it was the pod's first container, the VM ends, too.
func (p *process) finish(code uint32) {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.finishLocked(code)
}

func (p *process) finishLocked(code uint32) {
	p.mu.Lock()
	started := p.status != tasktypes.Status_CREATED || p.exec == ""
	p.status, p.code, p.exited = tasktypes.Status_STOPPED, code, time.Now()
	exited := p.exited
	p.mu.Unlock()
	close(p.ended)
	if !started {
		return
	}
	p.service.publish(&eventtypes.TaskExit{
		ContainerID: p.container.id, ID: p.guestID(), Pid: uint32(p.pod.PID()), ExitStatus: code, ExitedAt: timestamppb.New(exited),
	})
}

// start runs the process.
func (p *process) start(ctx context.Context) (uint32, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	status := p.status
	p.mu.Unlock()
	if status != tasktypes.Status_CREATED {
		return 0, precondition("process %s of container %s is not waiting to be started", p.name(), p.container.id)
	}
	if p.exec != "" {
		return p.startExec(ctx)
	}
	if err := p.pod.StartContainer(ctx, p.container.id); err != nil {
		return 0, err
	}
	p.running()
	p.service.publish(&eventtypes.TaskStart{ContainerID: p.container.id, Pid: uint32(p.pod.PID())})
	return uint32(p.pod.PID()), nil
}

func (p *process) startExec(ctx context.Context) (uint32, error) {
	if p.container.init.state().status != tasktypes.Status_RUNNING {
		return 0, precondition("container %s does not run", p.container.id)
	}
	if err := p.pod.Exec(ctx, p.container.id, p.exec, p.spec); err != nil {
		p.abandon()
		p.finishLocked(lostCode)
		return 0, err
	}
	p.running()
	p.service.publish(&eventtypes.TaskExecStarted{ContainerID: p.container.id, ExecID: p.exec, Pid: uint32(p.pod.PID())})
	p.follow()
	return uint32(p.pod.PID()), nil
}

// running notes the start, unless the process is over already.
func (p *process) running() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == tasktypes.Status_CREATED {
		p.status = tasktypes.Status_RUNNING
	}
}

// kill sends a signal. A process that was never started, or has ended, gets none.
func (p *process) kill(ctx context.Context, signal uint32, all bool) error {
	p.mu.Lock()
	status := p.status
	p.mu.Unlock()
	switch {
	case status == tasktypes.Status_STOPPED:
		return notFound("process %s of container %s has ended", p.name(), p.container.id)
	case status == tasktypes.Status_CREATED && p.exec != "":
		p.abandon()
		p.finish(128 + signal)
		return nil
	}
	return p.pod.Signal(ctx, p.container.id, p.guestID(), signal, all)
}

// freeze stops and continues a container.
func (p *process) freeze(ctx context.Context, on bool) error {
	want, next, do := tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, p.pod.Pause
	if !on {
		want, next, do = tasktypes.Status_PAUSED, tasktypes.Status_RUNNING, p.pod.Resume
	}
	p.mu.Lock()
	status := p.status
	p.mu.Unlock()
	if status != want {
		return precondition("container %s is %s, want %s", p.container.id, status, want)
	}
	if err := do(ctx, p.container.id); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == want {
		p.status = next
	}
	return nil
}

func (p *process) resize(ctx context.Context, rows, columns uint32) error {
	if !p.io.terminal {
		return precondition("process %s of container %s has no terminal", p.name(), p.container.id)
	}
	if p.state().status == tasktypes.Status_CREATED && p.exec != "" {
		p.mu.Lock()
		p.spec.ConsoleSize = &specs.Box{Height: uint(rows), Width: uint(columns)}
		p.mu.Unlock()
		return nil
	}
	return p.pod.ResizeTerminal(ctx, p.container.id, p.guestID(), rows, columns)
}

func (p *process) closeStdin() { p.copy.CloseStdin() }

// drained waits until the output has been passed on, where there is any.
func (p *process) drained(ctx context.Context) {
	select {
	case <-p.ended:
	default:
		return // it was never started
	}
	p.follows.Do(func() { close(p.copied) }) // nothing was copied
	select {
	case <-p.copied:
	case <-ctx.Done():
	}
}

// abandon closes the streams of a process that copies nothing any more.
func (p *process) abandon() { p.quiet.Do(func() { p.copy.Close() }) }

// deleted is the answer to its deletion.
func (p *process) deleted() *task.DeleteResponse {
	p.abandon()
	st := p.state()
	return &task.DeleteResponse{Pid: uint32(p.pod.PID()), ExitStatus: st.code, ExitedAt: stamp(st.exited)}
}
