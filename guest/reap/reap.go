package reap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrStopped is returned when a process is started after the reaper has stopped.
var ErrStopped = errors.New("process reaper has stopped")

// Status is how a process ended.
type Status struct {
	// Code is the exit code; it is meaningful only when Signal is zero.
	Code int
	// Signal is the signal that ended the process, or zero.
	Signal syscall.Signal
}

// ExitCode is the code a shell would report: 128 plus the signal for a signalled process.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

func (s Status) String() string {
	if s.Signal != 0 {
		return "signal " + s.Signal.String()
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// Process is a process whose exit status will be delivered.
type Process struct {
	pid    int
	reaper *Reaper
	done   chan struct{}
	status Status // written once before done is closed
}

// Pid is the process id in the guest's own pid namespace.
func (p *Process) Pid() int { return p.pid }

// Done is closed once the process has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns how the process ended; it must be called after Done is closed.
func (p *Process) Status() Status { return p.status }

// Wait blocks until the process has ended or ctx is done.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return p.status, nil
	default:
	}
	select {
	case <-p.done:
		return p.status, nil
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// Signal sends sig, or returns os.ErrProcessDone when the process has been reaped.
func (p *Process) Signal(sig syscall.Signal) error {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	if err := unix.Kill(p.pid, sig); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return fmt.Errorf("sending %s to process %d: %w", sig, p.pid, err)
	}
	return nil
}

// Reaper owns all children of this program. Make one per program with New.
type Reaper struct {
	log *slog.Logger

	mu         sync.Mutex
	waited     map[int]*Process
	unclaimed  map[int]Status // statuses nobody asked for yet, kept only while a Collector is open
	collectors int
	stopped    bool
}

// New returns a reaper; Serve must run for statuses to be delivered.
func New(log *slog.Logger) *Reaper {
	return &Reaper{log: log, waited: map[int]*Process{}, unclaimed: map[int]Status{}}
}

// Serve collects children until ctx is done. It blocks.
func (r *Reaper) Serve(ctx context.Context) error {
	// One slot is enough: a signal that arrives while a sweep runs leaves the slot filled and causes another sweep.
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	defer signal.Stop(sigchld)
	defer r.stop()
	r.sweep() // children that ended before the handler was installed
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sigchld:
			r.sweep()
		}
	}
}

// stop refuses further starts: their statuses would never be delivered.
func (r *Reaper) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
}

// sweep collects every child that has ended.
func (r *Reaper) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		switch {
		case ws.Exited():
			r.deliver(pid, Status{Code: ws.ExitStatus()})
		case ws.Signaled():
			r.deliver(pid, Status{Signal: ws.Signal()})
		}
	}
}

// deliver hands one status to its owner; the caller holds the lock.
func (r *Reaper) deliver(pid int, s Status) {
	p, ok := r.waited[pid]
	if !ok {
		if r.collectors > 0 {
			r.unclaimed[pid] = s
		}
		return
	}
	delete(r.waited, pid)
	p.status = s
	close(p.done)
}

// Start starts a program. argv[0] is the program's name for itself; path is what is executed, without search.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil, ErrStopped
	}
	// Under the lock no sweep can take the status before the pid is registered.
	proc, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	pid := proc.Pid
	if err := proc.Release(); err != nil {
		r.log.Warn("releasing process handle", "pid", pid, "error", err)
	}
	return r.register(pid), nil
}

func (r *Reaper) register(pid int) *Process {
	p := &Process{pid: pid, reaper: r, done: make(chan struct{})}
	r.waited[pid] = p
	return p
}

// Collector keeps the statuses of unknown children so that a process whose pid becomes known only after it may have
// ended (a container's init, reported in a pid file) can still be watched. It must be opened before the process exists
// and closed soon after.
type Collector struct {
	r    *Reaper
	once sync.Once
}

// Collect opens a Collector.
func (r *Reaper) Collect() *Collector {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collectors++
	return &Collector{r: r}
}

// Watch returns the adopted process pid, which may already have ended.
func (c *Collector) Watch(pid int) (*Process, error) {
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid <= 1 {
		return nil, fmt.Errorf("watching process %d: not a child's pid", pid)
	}
	if r.stopped {
		return nil, ErrStopped
	}
	if p, ok := r.waited[pid]; ok {
		return p, nil
	}
	s, ended := r.unclaimed[pid]
	delete(r.unclaimed, pid)
	err := isChild(pid)
	switch {
	case err == nil:
		// A child that is there has not been reaped, so a status under its number is that of an earlier holder.
		return r.register(pid), nil
	case !ended:
		return nil, fmt.Errorf("watching process %d: %w", pid, err)
	}
	p := &Process{pid: pid, reaper: r, done: make(chan struct{}), status: s}
	close(p.done)
	return p, nil
}

// isChild returns nil when pid is now the number of a child of ours that was not reaped. A stranger, or a thread, that
// has got the number of a reaped child is none.
func isChild(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		// WNOWAIT leaves the status to the sweep.
		err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Close ends the collection; it may be called more than once.
func (c *Collector) Close() {
	c.once.Do(func() {
		c.r.mu.Lock()
		defer c.r.mu.Unlock()
		c.r.collectors--
		if c.r.collectors == 0 {
			clear(c.r.unclaimed)
		}
	})
}
