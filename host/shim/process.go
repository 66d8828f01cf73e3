package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloister/cloister/host/agent"
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

	ended   chan struct{} // closed when the process has ended, or will never run
	copied  chan struct{} // closed when its output has been passed on
	follows sync.Once
	quiet   sync.Once
	killing sync.Once

	starting sync.Mutex // held while it starts, so that its end is not told before its start

	mu     sync.Mutex
	status tasktypes.Status
	code   uint32
	exited time.Time
	lost   error  // why the guest could not tell of its end
	giveUp func() // ends the waiting for its end; not nil once it is followed
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
		p.mu.Lock()
		p.giveUp = end
		p.mu.Unlock()
		go func() {
			defer close(p.copied)
			if err := p.copy.Copy(life, stdio.FromAgent(p.pod.Agent(), p.container.id, p.guestID())); err != nil {
				p.service.log.Warn("copying the output of a process", "container", p.container.id, "exec", p.exec, "error", err)
			}
		}()
		go func() {
			if !p.pod.KeepsOutput() {
				select {
				case <-p.copy.Read():
				case <-p.copied:
				}
			}
			code, err := p.pod.Wait(life, p.container.id, p.guestID())
			if err != nil {
				p.service.log.Warn("a process was lost", "container", p.container.id, "exec", p.exec, "error", err)
				p.mu.Lock()
				p.lost = err
				p.mu.Unlock()
				code = lostCode
			} else if p.exec == "" {
				p.pod.CollectTermination(life, p.container.id)
			}
			p.finish(exitCode(code))
			// What the process has written arrives after its end; what a child of it may write later is not waited for.
			p.copy.Exited(drainTimeout)
			<-p.copied
			end()
		}()
	})
}

// drainTimeout is how long output may still arrive after the end of a process.
const drainTimeout = 10 * time.Second

// exitCode is what a guest says as far as it can be true: a code that no process can have is one of a process that was lost, and never 0.
func exitCode(code int) uint32 {
	if code < 0 || code > lostCode {
		return lostCode
	}
	return uint32(code)
}

// finish records the end, once, and publishes that of a process that the guest had.
func (p *process) finish(code uint32) {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.finishLocked(code)
}

func (p *process) finishLocked(code uint32) {
	p.mu.Lock()
	if p.status == tasktypes.Status_STOPPED {
		p.mu.Unlock()
		return
	}
	started := p.status != tasktypes.Status_CREATED || p.exec == ""
	p.status, p.code, p.exited = tasktypes.Status_STOPPED, code, time.Now()
	exited := p.exited
	p.mu.Unlock()
	if started {
		p.service.publish(&eventtypes.TaskExit{
			ContainerID: p.container.id, ID: p.guestID(), Pid: uint32(p.pod.PID()), ExitStatus: code, ExitedAt: timestamppb.New(exited),
		})
	}
	close(p.ended) // after the event, so that a deletion is published after it
}

// start runs the process.
func (p *process) start(ctx context.Context) (uint32, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	status, lost := p.status, p.lost
	p.mu.Unlock()
	if status == tasktypes.Status_STOPPED && lost != nil {
		return 0, fmt.Errorf("process %s of container %s cannot be started: %w", p.name(), p.container.id, lost)
	}
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
	p.mu.Lock()
	spec := *p.spec // a resize may come at the same time
	p.mu.Unlock()
	if err := p.pod.Exec(ctx, p.container.id, p.exec, &spec); err != nil {
		if e := (*agent.Error)(nil); !errors.As(err, &e) && !p.podEnded() {
			go p.killUnseen(context.WithoutCancel(ctx))
		}
		p.abandon()
		p.finishLocked(lostCode)
		return 0, err
	}
	p.running()
	p.service.publish(&eventtypes.TaskExecStarted{ContainerID: p.container.id, ExecID: p.exec, Pid: uint32(p.pod.PID())})
	p.follow()
	return uint32(p.pod.PID()), nil
}

// killUnseen ends a process whose start was not waited for to the end: nobody would ever hear of it.
func (p *process) killUnseen(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, discardTimeout)
	defer cancel()
	if err := p.pod.Signal(ctx, p.container.id, p.guestID(), uint32(unix.SIGKILL), false); err != nil {
		p.service.log.Debug("ending a process whose start took too long", "container", p.container.id, "exec", p.exec, "error", err)
	}
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
	if signal > maxSignal {
		return invalid("%d is no signal", signal)
	}
	if p.exec != "" && p.cancel(128+signal) {
		return nil
	}
	if p.state().status == tasktypes.Status_STOPPED {
		return notFound("process %s of container %s has ended", p.name(), p.container.id)
	}
	if signal == uint32(unix.SIGKILL) { // from the guest's answer on, or from when there is none in the time of a request
		defer p.killing.Do(func() { go p.insist() })
	}
	err := p.pod.Signal(ctx, p.container.id, p.guestID(), signal, all && p.exec == "")
	if err == nil {
		return nil
	}
	if p.podEnded() {
		return notFound("process %s of container %s has ended with the virtual machine", p.name(), p.container.id)
	}
	return err
}

// killTime is how long a guest may take to end what was killed.
const killTime = 2 * time.Minute

// insist ends the virtual machine of a guest that was told to kill a container and does not say that it has ended: containerd waits for that
// before it stops a pod, so that such a guest could stay for ever. A process beside the first is given up: it has to be deleted some time, and
// others go on.
func (p *process) insist() {
	timer := time.NewTimer(cmp.Or(p.service.cfg.KillTime, killTime))
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-p.pod.Ended():
	case <-timer.C:
		if p.state().status == tasktypes.Status_STOPPED {
			return // at the same moment
		}
		if p.exec != "" {
			p.mu.Lock()
			giveUp := p.giveUp
			p.mu.Unlock()
			if giveUp != nil {
				giveUp()
			}
			return
		}
		p.pod.End(fmt.Errorf("container %s was killed, and the guest has not ended it since", p.container.id))
	}
}

func (p *process) podEnded() bool {
	select {
	case <-p.pod.Ended():
		return true
	default:
		return false
	}
}

// maxSignal is the last of Linux.
const maxSignal = 64

// cancel ends a process that waits to be started, and says whether it was one.
func (p *process) cancel(code uint32) bool {
	if p.state().status != tasktypes.Status_CREATED {
		return false
	}
	p.starting.Lock() // if it is about to start it shall do so first
	defer p.starting.Unlock()
	if p.state().status != tasktypes.Status_CREATED {
		return false
	}
	p.abandon()
	p.finishLocked(code)
	return true
}

// discard ends a first process that was never started, so that its end is told before the deletion of its container.
func (p *process) discard(ctx context.Context) {
	if p.state().status != tasktypes.Status_CREATED {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, discardTimeout)
	defer cancel()
	if err := p.pod.Signal(ctx, p.container.id, p.guestID(), uint32(unix.SIGKILL), true); err == nil || p.podEnded() {
		select {
		case <-p.ended:
		case <-ctx.Done():
		}
	}
	p.finish(killed)
	p.copy.Exited(drainTimeout) // a guest that does not say so would let the deletion wait for ever
}

// discardTimeout bounds the end of a process that was never started.
const discardTimeout = 10 * time.Second

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
		p.mu.Lock() // it begins with that size
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
