package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Errors a caller tells apart.
var (
	ErrNoProcess = errors.New("no such process")
	ErrExists    = errors.New("exists already")
	// ErrRemains means that a container could neither be made nor removed without a trace.
	ErrRemains = errors.New("parts of the container remain")
)

// Container is one container of the pod.
type Container struct {
	ID string

	rt      *Runtime
	dir     string // state of this container
	cgroup  string
	unstage func() error
	init    *Process
	ended   chan struct{} // closed when the init has ended and all others were killed

	starting sync.Mutex // held while it is started

	mu      sync.Mutex
	state   State
	procs   map[string]*Process
	pending map[string]bool // exec ids being started
}

// State tells where the container is in its life.
func (c *Container) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// setState makes a transition, or reports that the life does not allow it.
func (c *Container) setState(to State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.allowed(to) {
		return transitionError(c.ID, c.state, to)
	}
	c.state = to
	return nil
}

// check reports whether the container could become to.
func (c *Container) check(to State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.allowed(to) {
		return transitionError(c.ID, c.state, to)
	}
	return nil
}

// Ended is closed when the container's first process has ended and the others were killed.
func (c *Container) Ended() <-chan struct{} { return c.ended }

// Init is the container's first process.
func (c *Container) Init() *Process { return c.init }

// Process finds a process by its exec id; the empty id is the init.
func (c *Container) Process(execID string) (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if execID == "" {
		execID = c.init.ExecID
	}
	if p, ok := c.procs[execID]; ok {
		return p, nil
	}
	if execID == c.ID {
		return c.init, nil
	}
	return nil, fmt.Errorf("process %q of container %s: %w", clip(execID), c.ID, ErrNoProcess)
}

// forget drops the record of an ended process. The init's stays as long as the container, for late callers.
func (c *Container) forget(execID string) {
	c.mu.Lock()
	p := c.procs[execID]
	if p == nil || p == c.init {
		c.mu.Unlock()
		return
	}
	delete(c.procs, execID)
	c.mu.Unlock()
	p.close()
}

// watchInit ends the container with its init: whatever shares a longer-lived pid namespace with it goes, too.
func (c *Container) watchInit() {
	<-c.init.Done()
	_ = c.setState(Stopped)
	_ = c.killCgroup()
	close(c.ended)
}

// Start lets the init run. onOOM is called for each process the kernel kills for want of memory. A start is not cut off with its
// caller, who could not tell whether the program runs; one that fails ends the container for the same reason.
func (c *Container) Start(ctx context.Context, onOOM func()) error {
	c.starting.Lock()
	defer c.starting.Unlock()
	if c.State() != Created {
		return transitionError(c.ID, c.State(), Running)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	stopOOM, err := watchOOM(c.cgroup, onOOM)
	if err != nil {
		c.rt.log.Warn("memory exhaustion will not be reported", "container", c.ID, "error", err)
	} else {
		go func() {
			<-c.init.Done()
			stopOOM()
		}()
	}
	if err := c.rt.runc.call(ctx, c.dir, nil, "start", c.ID); err != nil {
		return errors.Join(fmt.Errorf("starting container %s: %w", c.ID, err), c.KillAll())
	}
	// A short program may have ended already.
	if err := c.setState(Running); err != nil && c.State() != Stopped {
		return err
	}
	return nil
}

// Exec starts another process in the running container.
func (c *Container) Exec(ctx context.Context, execID string, ps *ProcessSpec) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.reserve(execID); err != nil {
		return nil, err
	}
	defer func() {
		c.mu.Lock()
		delete(c.pending, execID)
		c.mu.Unlock()
	}()
	file, err := os.CreateTemp(c.dir, "exec")
	if err != nil {
		return nil, fmt.Errorf("writing the process: %w", err)
	}
	defer os.Remove(file.Name())
	err = errors.Join(json.NewEncoder(file).Encode(ps), file.Close())
	if err != nil {
		return nil, fmt.Errorf("writing the process: %w", err)
	}
	p, err := c.launch(ctx, execID, false, ps, []string{"exec", "--detach", "--process", file.Name()}, c.ID)
	if err != nil {
		return nil, fmt.Errorf("executing in container %s: %w", c.ID, err)
	}
	if s := c.State(); s == Stopped || s == Deleted { // it has ended meanwhile, and so do those that came too late to be killed
		return nil, errors.Join(fmt.Errorf("container %s is %s: %w", c.ID, s, ErrState), p.Signal(syscall.SIGKILL), c.killCgroup())
	}
	return p, nil
}

// reserve takes an exec id of the running container.
func (c *Container) reserve(execID string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != Running {
		return fmt.Errorf("container %s is %s, not running: %w", c.ID, c.state, ErrState)
	}
	if execID == "" || execID == c.ID || c.procs[execID] != nil || c.pending[execID] {
		return fmt.Errorf("exec id %q in container %s: %w", clip(execID), c.ID, ErrExists)
	}
	if c.pending == nil {
		c.pending = map[string]bool{}
	}
	c.pending[execID] = true
	return nil
}

// KillAll kills every process of the container.
func (c *Container) KillAll() error {
	if err := c.killCgroup(); err != nil {
		return err
	}
	return c.init.Signal(syscall.SIGKILL)
}

// killCgroup uses the kernel's own switch, which misses no process that forks meanwhile.
func (c *Container) killCgroup() error {
	err := os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("killing the processes of container %s: %w", c.ID, err)
	}
	return nil
}

// Pause freezes the container.
func (c *Container) Pause(ctx context.Context) error { return c.freeze(ctx, "pause", Paused) }

// Resume thaws the container.
func (c *Container) Resume(ctx context.Context) error { return c.freeze(ctx, "resume", Running) }

func (c *Container) freeze(ctx context.Context, verb string, to State) error {
	if to == Running && c.State() != Paused {
		return transitionError(c.ID, c.State(), to)
	}
	if err := c.check(to); err != nil {
		return err
	}
	if err := c.rt.runc.call(ctx, c.dir, nil, verb, c.ID); err != nil {
		return fmt.Errorf("container %s: %s: %w", c.ID, verb, err)
	}
	return c.setState(to)
}

// Update changes the container's limits.
func (c *Container) Update(ctx context.Context, res *ResourcesSpec) error {
	work, err := os.MkdirTemp(c.dir, "u")
	if err != nil {
		return fmt.Errorf("making a work directory: %w", err)
	}
	defer os.RemoveAll(work)
	file := filepath.Join(work, "resources.json")
	if err := writeJSON(file, res); err != nil {
		return err
	}
	if err := c.rt.runc.call(ctx, work, nil, "update", "--resources", file, c.ID); err != nil {
		return fmt.Errorf("updating container %s: %w", c.ID, err)
	}
	return nil
}

// Delete kills what still runs and removes the container. It may be repeated.
func (c *Container) Delete(ctx context.Context) error {
	if c.State() == Deleted {
		return nil
	}
	if err := c.KillAll(); err != nil {
		return err
	}
	if _, err := c.init.proc.Wait(ctx); err != nil {
		return fmt.Errorf("waiting for container %s to end: %w", c.ID, err)
	}
	_ = c.setState(Stopped)
	if err := c.discard(ctx); err != nil {
		return err
	}
	return c.setState(Deleted)
}

// deleteTimeout bounds clean-up, which must also work when its caller has given up.
const deleteTimeout = time.Minute

// discard removes all traces; it works on a container that was only half made.
func (c *Container) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	var errs []error
	// An earlier try may have got as far as removing it.
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("deleting container %s: %w", c.ID, err)
	}
	if err := c.rt.runc.call(ctx, c.dir, nil, "delete", "--force", c.ID); err != nil {
		errs = append(errs, fmt.Errorf("deleting container %s: %w", c.ID, err))
	}
	c.mu.Lock()
	procs := c.procs
	c.procs = map[string]*Process{}
	c.mu.Unlock()
	for _, p := range procs {
		p.close()
	}
	if c.unstage != nil {
		if err := c.unstage(); err != nil {
			errs = append(errs, err)
		} else {
			c.unstage = nil
		}
	}
	if err := RemoveTree(c.dir); err != nil {
		errs = append(errs, fmt.Errorf("removing the state of container %s: %w", c.ID, err))
	}
	return errors.Join(errs...)
}
