package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cloister/cloister/guest/reap"
)

// Config places the runtime's files.
type Config struct {
	// Runc is the path of the container runtime.
	Runc string
	// StateDir holds what the guest keeps about containers; nothing from the host may reach it.
	StateDir string
	// CgroupRoot is where cgroup2 is mounted.
	CgroupRoot string
	// PipeSize of a process's streams; zero is the kernel's choice.
	PipeSize int
}

// DefaultConfig is the layout of the guest image.
func DefaultConfig() Config {
	return Config{Runc: "/usr/bin/runc", StateDir: "/run/cloister", CgroupRoot: "/sys/fs/cgroup"}
}

// startTimeout bounds a runtime command whose caller sets no limit.
const startTimeout = 5 * time.Minute

// Runtime makes containers.
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	reaper *reap.Reaper
	runc   *runc
}

// NewRuntime returns a runtime; nothing is touched before the first container.
func NewRuntime(cfg Config, reaper *reap.Reaper, log *slog.Logger) *Runtime {
	return &Runtime{
		cfg: cfg, log: log, reaper: reaper,
		runc: &runc{reaper: reaper, path: cfg.Runc, root: filepath.Join(cfg.StateDir, "runc")},
	}
}

// Create makes a container whose init waits for Start. execID is the key of the init process. When it fails nothing of
// the container remains.
func (r *Runtime) Create(ctx context.Context, id, execID string, spec *Spec, bindRoots []string) (_ *Container, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c := &Container{
		ID: id, rt: r, dir: filepath.Join(r.cfg.StateDir, "containers", id), state: Creating, procs: map[string]*Process{}, ended: make(chan struct{}),
		cgroup: filepath.Join(r.cfg.CgroupRoot, CgroupsPath(id)),
	}
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o700); err != nil {
		return nil, fmt.Errorf("making the container directory: %w", err)
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("container %s: %w: %w", id, ErrExists, err)
		}
		return nil, fmt.Errorf("making the container directory: %w", err)
	}
	defer func() {
		if err == nil {
			return
		}
		if derr := c.discard(context.WithoutCancel(ctx)); derr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrRemains, derr))
		}
	}()
	if c.unstage, err = stageBinds(spec, bindRoots, filepath.Join(c.dir, "mounts")); err != nil {
		return nil, err
	}
	if err := applyNetSysctl("/proc/sys", spec.NetSysctl); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(c.dir, "config.json"), spec); err != nil {
		return nil, err
	}
	args := []string{"create", "--bundle", c.dir}
	p, err := c.launch(ctx, execID, true, spec.Process, args, id)
	if err != nil {
		return nil, fmt.Errorf("creating container %s: %w", id, err)
	}
	c.init = p
	if err := c.setState(Created); err != nil {
		return nil, err
	}
	go c.watchInit()
	return c, nil
}

// launch starts a process through the runtime with streams of its own.
func (c *Container) launch(ctx context.Context, execID string, init bool, ps *ProcessSpec, args []string, last string) (*Process, error) {
	work, err := os.MkdirTemp(c.dir, "p")
	if err != nil {
		return nil, fmt.Errorf("making a work directory: %w", err)
	}
	defer os.RemoveAll(work)
	s, err := openStdio(ps.Terminal, filepath.Join(work, "tty"), c.rt.cfg.PipeSize)
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			s.close()
		}
	}()
	if err := s.own(ps.User.UID, ps.User.GID); err != nil {
		return nil, err
	}
	pidFile := filepath.Join(work, "pid")
	args = append(args, "--pid-file", pidFile)
	var received sync.WaitGroup
	var ttyErr error
	if s.console != nil {
		args = append(args, "--console-socket", s.console.path)
		// The runtime sends the terminal while it runs; when it fails before that, the wait is ended.
		wait, cancel := context.WithCancel(ctx)
		received.Go(func() { s.tty, ttyErr = s.console.receive(wait) })
		defer received.Wait()
		defer cancel()
	}
	proc, err := c.rt.runc.launch(ctx, work, s.child, pidFile, append(args, last)...)
	if err != nil {
		return nil, err
	}
	received.Wait()
	if ttyErr != nil {
		_ = proc.Signal(9)
		return nil, ttyErr
	}
	s.started()
	kept = true
	p := newProcess(execID, init, proc, s, func() { c.forget(execID) })
	c.mu.Lock()
	c.procs[execID] = p
	c.mu.Unlock()
	return p, nil
}
