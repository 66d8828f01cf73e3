package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	client "github.com/cloister/cloister/host/agent"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/agent"
)

// errStopped is the cause of a context that ended because somebody asked the pod to stop.
var errStopped = errors.New("the pod was asked to stop")

// goneTimeout is how long the guest may take to power off after its sandbox was destroyed.
const goneTimeout = 20 * time.Second

// copyChunk is the most that one CopyFile request carries.
const copyChunk = 1 << 20

// supervisor is one pod while it runs.
type supervisor struct {
	opts  Options
	place *reservation
	state *stateKeeper
	ctl   *control
	vm    Machine
	agent *client.Client
	out   *output
	logs  sync.WaitGroup

	eventMu sync.Mutex
	stdin   sync.Once

	stopMu sync.Mutex
	grace  time.Duration
	stop   context.CancelCauseFunc
}

// Run runs the pod until it has ended. When ctx ends, or Stop is called by another process, the containers get SIGTERM, then, after the
// grace period, SIGKILL. The error is about what kept the pod from running; containers that end with other codes than 0 are no error.
func Run(ctx context.Context, opts Options) (Result, error) {
	if err := opts.complete(); err != nil {
		return Result{}, err
	}
	name := opts.Plan.Name
	place, err := reserve(ctx, opts.Dirs.Run, name)
	if err != nil {
		return Result{}, err
	}
	s := &supervisor{opts: opts, place: place, grace: opts.Grace, out: newOutput(&opts)}
	clean := context.WithoutCancel(ctx)
	if err := s.prepare(); err != nil {
		return Result{}, errors.Join(fmt.Errorf("running pod %s: %w", name, err), place.release(clean))
	}
	runCtx, stop := context.WithCancelCause(ctx)
	s.stop = stop
	defer stop(nil)

	var code int
	s.ctl, err = listenControl(filepath.Join(place.dir, ctlSocket), s)
	if err == nil {
		code, err = s.run(runCtx, clean)
	}
	if runCtx.Err() != nil && (errors.Is(err, errStopped) || errors.Is(err, context.Canceled)) {
		err = fmt.Errorf("%w before its containers ran", errStopped)
	}
	if err != nil {
		err = fmt.Errorf("running pod %s: %w", name, err)
	}
	terr := s.teardown(clean)
	return s.finish(clean, code, err, terr)
}

// prepare makes the log directory and the first state.
func (s *supervisor) prepare() error {
	o := &s.opts
	if err := os.MkdirAll(o.LogDir, 0o700); err != nil {
		return fmt.Errorf("making the log directory: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(o.LogDir, "*.log*"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("removing the logs of an earlier pod: %w", err)
		}
	}
	plan, err := o.Plan.Marshal()
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	if err := paths.WriteFile(filepath.Join(s.place.dir, planFile), plan, 0o600); err != nil {
		return err
	}
	st := State{
		Name: o.Plan.Name, Namespace: o.Plan.Namespace, Phase: Starting, Supervisor: os.Getpid(),
		Accel: o.VM.Accel, TEE: o.TEE, LogDir: o.LogDir, Started: time.Now().UTC(),
	}
	for i := range o.Plan.Containers {
		c := &o.Plan.Containers[i]
		st.Containers = append(st.Containers, ContainerState{
			Name: c.Name, ID: c.Create.GetContainerId(), Image: c.Image, Init: c.Init, State: ContainerWaiting,
		})
	}
	s.state = &stateKeeper{dirs: []string{s.place.dir, o.LogDir}}
	s.state.update(func(x *State) { *x = st })
	return s.state.err
}

// run takes the pod from nothing to the end of its containers. ctx ends when the pod shall stop; base does not.
func (s *supervisor) run(ctx, base context.Context) (int, error) {
	if err := s.boot(ctx); err != nil {
		return 0, err
	}
	a, plan := s.agent, s.opts.Plan
	if err := s.step(StepNetwork, "", func() error { return s.network(ctx) }); err != nil {
		return 0, err
	}
	err := s.step(StepSandbox, "", func() error {
		return a.Call(ctx, client.CallTimeout, "creating the sandbox", func(c context.Context) error {
			_, err := a.CreateSandbox(c, plan.Sandbox)
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	if len(plan.Files) > 0 {
		if err := s.step(StepFiles, "", func() error { return s.copyFiles(ctx) }); err != nil {
			return 0, err
		}
	}
	return s.containers(ctx, base)
}

// boot starts the VM and waits for the guest's first answer.
func (s *supervisor) boot(ctx context.Context) error {
	cfg := s.opts.VM
	cfg.Name = s.opts.Plan.Name
	cfg.Dir = filepath.Join(s.place.dir, vmDir)
	cfg.ConsoleLog = filepath.Join(s.opts.LogDir, "console.log")
	cfg.VCPUs = cmp.Or(max(cfg.VCPUs, s.opts.Plan.Resources.VCPUs), DefaultVCPUs)
	cfg.MemoryMiB = cmp.Or(max(cfg.MemoryMiB, s.opts.Plan.Resources.MemoryMiB), DefaultMemoryMiB)
	err := s.step(StepVMStart, "", func() (err error) {
		s.vm, err = s.opts.StartVM(ctx, cfg)
		return err
	})
	if err != nil {
		return err
	}
	s.ctl.serveGuest(s.vm)
	return s.step(StepGuestReady, "", func() error {
		conn, err := s.vm.Dial(ctx, client.PortAgent)
		if err != nil {
			return fmt.Errorf("connecting to the agent: %w", err)
		}
		s.agent = client.New(conn, s.gone)
		rctx, cancel := context.WithTimeout(ctx, s.opts.ReadyTimeout)
		defer cancel()
		err = s.agent.Call(rctx, 0, "waiting for the guest", func(c context.Context) error {
			_, err := s.agent.Health.Check(c, &agent.CheckRequest{})
			return err
		})
		// The call's own timer may fire a moment before that of the context, so that the clock decides.
		deadline, _ := rctx.Deadline()
		if err != nil && !time.Now().Before(deadline) && ctx.Err() == nil {
			return fmt.Errorf("the guest did not answer within %s; end of the console:\n  %s", s.opts.ReadyTimeout,
				strings.Join(s.vm.ConsoleTail(20), "\n  "))
		}
		if err == nil {
			s.collectGuestLog(ctx)
		}
		return err
	})
}

// gone waits a moment for the VM's end after a connection broke, since that is the reason nearly always.
func (s *supervisor) gone() error {
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-s.vm.Exited():
		return s.vm.Err()
	case <-t.C:
		if r := s.vm.FatalReason(); r != "" {
			return errors.New("the guest is ending: " + r)
		}
		return nil
	}
}

// network gives the guest its address in QEMU's user-mode network.
func (s *supervisor) network(ctx context.Context) error {
	err := s.agent.Call(ctx, client.CallTimeout, "configuring the network interface", func(c context.Context) error {
		_, err := s.agent.UpdateInterface(c, &agent.UpdateInterfaceRequest{Interface: &agent.Interface{
			Device: "eth0", Name: "eth0", Mtu: 1500, HwAddr: vmm.GuestMAC, Type: "veth",
			IPAddresses: []*agent.IPAddress{{Family: agent.IPFamily_v4, Address: "10.0.2.15", Mask: "24"}},
		}})
		return err
	})
	if err != nil {
		return err
	}
	return s.agent.Call(ctx, client.CallTimeout, "configuring the default route", func(c context.Context) error {
		_, err := s.agent.UpdateRoutes(c, &agent.UpdateRoutesRequest{Routes: &agent.Routes{
			Routes: []*agent.Route{{Gateway: "10.0.2.2", Device: "eth0"}},
		}})
		return err
	})
}

func (s *supervisor) copyFiles(ctx context.Context) error {
	for _, f := range s.opts.Plan.Files {
		for _, part := range splitFile(f.Request) {
			err := s.agent.Call(ctx, client.CallTimeout, "copying "+part.GetPath(), func(c context.Context) error {
				_, err := s.agent.CopyFile(c, part)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// splitFile cuts a file into requests of a size that the protocol carries.
func splitFile(r *agent.CopyFileRequest) []*agent.CopyFileRequest {
	if len(r.GetData()) <= copyChunk {
		return []*agent.CopyFileRequest{r}
	}
	head := &agent.CopyFileRequest{
		Path: r.GetPath(), FileSize: r.GetFileSize(), FileMode: r.GetFileMode(), DirMode: r.GetDirMode(), Uid: r.GetUid(), Gid: r.GetGid(),
	}
	var out []*agent.CopyFileRequest
	for data, off := r.GetData(), r.GetOffset(); len(data) > 0; {
		n := min(len(data), copyChunk)
		part := proto.CloneOf(head)
		part.Offset, part.Data = off, data[:n]
		out = append(out, part)
		data, off = data[n:], off+int64(n)
	}
	return out
}

// step does one step and reports it.
func (s *supervisor) step(name, container string, f func() error) error {
	start := time.Now()
	err := f()
	e := Event{Time: time.Now().UTC(), Step: name, Container: container, Took: time.Since(start)}
	if err != nil {
		e.Error = err.Error()
	}
	s.emit(e)
	return err
}

func (s *supervisor) emit(e Event) {
	s.eventMu.Lock()
	defer s.eventMu.Unlock()
	s.state.update(func(x *State) { x.Events = append(x.Events, e) })
	s.opts.Logger.Info("pod step", "pod", s.opts.Plan.Name, "step", e.Step, "container", e.Container, "took", e.Took, "error", e.Error)
	if s.opts.OnEvent != nil {
		s.opts.OnEvent(e)
	}
}

// requestStop begins the orderly end of the pod.
func (s *supervisor) requestStop(grace time.Duration) {
	s.stopMu.Lock()
	if grace >= 0 {
		s.grace = grace
	}
	s.stopMu.Unlock()
	s.stop(errStopped)
}

func (s *supervisor) stopGrace() time.Duration {
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	return s.grace
}

// teardown ends the VM, whatever state it is in, and waits until it is gone.
func (s *supervisor) teardown(ctx context.Context) error {
	if s.vm == nil {
		return nil
	}
	return s.step(StepGone, "", func() error {
		select {
		case <-s.vm.Exited():
		default:
			s.destroySandbox(ctx)
		}
		sctx, cancel := context.WithTimeout(ctx, goneTimeout)
		defer cancel()
		if !s.reached(StepSandbox) {
			cancel() // nothing ran that could want to end in order, and firmware does not know the power button
		}
		err := s.vm.Stop(sctx)
		if s.agent != nil {
			s.agent.Close()
		}
		s.logs.Wait()
		return err
	})
}

// destroySandbox asks the guest to power off. The guest may end before it answers, so that only a refusal is worth a line in the log.
func (s *supervisor) destroySandbox(ctx context.Context) {
	if s.agent == nil || !s.reached(StepSandbox) {
		return
	}
	dctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.agent.DestroySandbox(dctx, &agent.DestroySandboxRequest{})
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			s.opts.Logger.Debug("destroying the sandbox", "pod", s.opts.Plan.Name, "error", err)
			return
		}
		s.agent.Close() // the guest powers off when its clients have gone, or a second later
	case <-s.vm.Exited():
	}
	select {
	case <-s.vm.Exited():
	case <-dctx.Done():
	}
}

func (s *supervisor) reached(step string) bool {
	for _, e := range s.state.snapshot().Events {
		if e.Step == step && e.Error == "" {
			return true
		}
	}
	return false
}

// finish writes the final state, removes the pod's directory and lets those go that wait for the end.
func (s *supervisor) finish(ctx context.Context, code int, err, terr error) (Result, error) {
	now := time.Now().UTC()
	s.state.update(func(x *State) {
		x.Ended, x.Phase = &now, Succeeded
		for i := range x.Containers { // whose end nobody has seen: the VM's was theirs
			if c := &x.Containers[i]; c.State == ContainerRunning {
				c.State, c.Ended = ContainerExited, &now
			}
		}
		if err != nil {
			x.Phase, x.Error = Failed, err.Error()
			return
		}
		x.ExitCode = &code
		if code != 0 {
			x.Phase = Failed
		}
	})
	res := Result{ExitCode: code, State: s.state.snapshot()}
	if terr != nil {
		terr = fmt.Errorf("ending pod %s: %w", s.opts.Plan.Name, terr)
	}
	rerr := s.place.release(ctx)
	if s.ctl != nil {
		s.ctl.close()
	}
	return res, errors.Join(err, terr, s.state.err, rerr)
}
