package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// CreateContainer makes a container that waits for StartContainer. When it fails nothing of it remains.
func (a *Agent) CreateContainer(ctx context.Context, req *agent.CreateContainerRequest) (_ *emptypb.Empty, err error) {
	id := req.GetContainerId()
	if err := checkCreate(req); err != nil {
		return nil, err
	}
	e, err := a.reserve(id)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if derr := a.dropContainer(id); derr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", container.ErrRemains, derr))
		}
	}()
	// The request is the host's; what the guest changes is a copy.
	oci := proto.CloneOf(req.GetOCI())
	e.oci = oci
	e.storages, err = a.addStorages(ctx, id, req.GetStorages())
	if err != nil {
		return nil, err
	}
	if usesPause(req.GetStorages()) {
		oci.Process = pauseProcess(oci.GetProcess())
	}
	if err := a.unsealEnv(ctx, id, oci.GetProcess()); err != nil {
		return nil, err
	}
	place, err := a.placement(id, req)
	if err != nil {
		return nil, err
	}
	if place.Devices, err = a.findDevices(ctx, req.GetDevices()); err != nil {
		return nil, err
	}
	spec, err := container.Convert(oci, place)
	if err != nil {
		return nil, err
	}
	if err := a.ensureRootfs(place.Rootfs, oci.GetRoot().GetPath(), place.BindRoots); err != nil {
		return nil, err
	}
	made, err := a.imageVolumes(id, place.Rootfs, spec.Mounts)
	if err != nil {
		return nil, err
	}
	opened, err := a.unsealFiles(ctx, id, spec.Mounts)
	if err != nil {
		return nil, err
	}
	c, err := a.cfg.Runtime.Create(ctx, id, initExecID(req), spec, append(place.BindRoots, opened, made, place.Rootfs))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	e.c = c
	if a.sandbox.sharedPid() == 0 {
		a.sandbox.firstPid, a.sandbox.firstEnd = c.Init().Pid(), c.Init().Done()
	}
	a.mu.Unlock()
	go a.noteEnd(e)
	a.log.Info("container created", "container", id, "pid", c.Init().Pid())
	return &emptypb.Empty{}, nil
}

// initExecID is the key of a container's first process: callers name it or leave it empty.
func initExecID(req *agent.CreateContainerRequest) string {
	if req.GetExecId() != "" {
		return req.GetExecId()
	}
	return req.GetContainerId()
}

func checkCreate(req *agent.CreateContainerRequest) error {
	if err := container.ValidID(req.GetContainerId()); err != nil {
		return err
	}
	switch req.GetContainerId() {
	case "shared", "sandbox", "image":
		return invalid("the id %s names a directory of the sandbox", req.GetContainerId())
	}
	if req.GetOCI() == nil {
		return invalid("there is no OCI specification")
	}
	if len(req.GetSharedMounts()) > 0 {
		return fmt.Errorf("mounts shared between containers: %w", errUnsupported)
	}
	if req.GetStdinPort()|req.GetStdoutPort()|req.GetStderrPort() != 0 {
		return fmt.Errorf("streams on their own ports: %w", errUnsupported)
	}
	return nil
}

// reserve takes a container id.
func (a *Agent) reserve(id string) (*entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandbox == nil || !a.sandbox.ready {
		return nil, invalid("there is no sandbox yet")
	}
	if _, ok := a.containers[id]; ok {
		return nil, fmt.Errorf("container %s: %w", id, container.ErrExists)
	}
	e := &entry{noted: make(chan struct{})}
	a.containers[id] = e
	return e, nil
}

// placement is the guest's part of a container.
func (a *Agent) placement(id string, req *agent.CreateContainerRequest) (container.Placement, error) {
	root := a.cfg.Layout.Root
	place := container.Placement{
		ID:     id,
		Rootfs: filepath.Join(root, id, "rootfs"),
		Join:   map[string]string{},
		// Neither images nor other containers are in the list: a mount of those would let one container change another.
		BindRoots: []string{filepath.Join(root, "shared/containers"), filepath.Join(root, "sandbox")},
		Reserved:  a.cfg.Reserved,
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for t, p := range a.sandbox.join {
		place.Join[t] = p
	}
	if req.GetSandboxPidns() {
		making := 0 // this one and those that may be the first
		for _, e := range a.containers {
			if e.c == nil {
				making++
			}
		}
		switch pid := a.sandbox.sharedPid(); {
		case pid != 0:
			place.Join["pid"] = "/proc/" + strconv.Itoa(pid) + "/ns/pid"
		case making > 1:
			return place, invalid("Sandbox does not have sandbox_pidns")
		}
	}
	return place, nil
}

// ensureRootfs binds the directory the specification names when no storage has provided a root.
func (a *Agent) ensureRootfs(rootfs, source string, roots []string) error {
	if _, err := os.Lstat(rootfs); err == nil {
		return nil
	}
	if source == "" || source == rootfs {
		return invalid("the container has no root file system")
	}
	if err := container.BindBeneath(filepath.Clean(source), roots, rootfs); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	return nil
}

// StartContainer lets the container's init run.
func (a *Agent) StartContainer(ctx context.Context, req *agent.StartContainerRequest) (*emptypb.Empty, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx, func() { a.reportOOM(c.ID) }); err != nil {
		return nil, err
	}
	a.log.Info("container started", "container", c.ID)
	if a.cfg.Settled != nil {
		a.cfg.Settled()
	}
	return &emptypb.Empty{}, nil
}

// RemoveContainer kills what runs and removes the container with its storages.
func (a *Agent) RemoveContainer(ctx context.Context, req *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	if _, err := a.container(req.GetContainerId()); err != nil {
		return nil, err
	}
	if t := req.GetTimeout(); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(t)*time.Second)
		defer cancel()
	}
	if err := a.removeContainer(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (a *Agent) removeContainer(ctx context.Context, id string) error {
	c, err := a.container(id)
	if err != nil {
		return err
	}
	if err := c.Delete(ctx); err != nil {
		return err
	}
	if err := a.dropContainer(id); err != nil {
		return err
	}
	a.log.Info("container removed", "container", id)
	return nil
}

// dropContainer forgets a container that no longer runs and releases what it used.
func (a *Agent) dropContainer(id string) error {
	a.mu.Lock()
	e := a.containers[id]
	if e == nil {
		a.mu.Unlock()
		return nil
	}
	storages := e.storages
	e.storages = nil // another removal at the same time releases nothing twice
	a.mu.Unlock()
	err := errors.Join(a.releaseStorages(storages), a.removeBundle(id))
	a.mu.Lock()
	delete(a.containers, id)
	a.mu.Unlock()
	return err
}

// removeBundle unmounts the container's root and removes its directory. A root that is still mounted is never removed
// through: its files may belong to others.
func (a *Agent) removeBundle(id string) error {
	dir := filepath.Join(a.cfg.Layout.Root, id)
	rootfs := filepath.Join(dir, "rootfs")
	for _, target := range []string{filepath.Join(rootfs, "pause"), rootfs} {
		if err := container.UnmountAll(target); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	if err := container.RemoveTree(dir); err != nil {
		return fmt.Errorf("removing the container's directory: %w", err)
	}
	return nil
}

// ExecProcess starts a process in a running container.
func (a *Agent) ExecProcess(ctx context.Context, req *agent.ExecProcessRequest) (*emptypb.Empty, error) {
	if req.GetStdinPort()|req.GetStdoutPort()|req.GetStderrPort() != 0 {
		return nil, fmt.Errorf("streams on their own ports: %w", errUnsupported)
	}
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	process := proto.CloneOf(req.GetProcess())
	if err := a.unsealEnv(ctx, c.ID, process); err != nil {
		return nil, err
	}
	ps, err := container.ConvertProcess(process)
	if err != nil {
		return nil, err
	}
	p, err := c.Exec(ctx, req.GetExecId(), ps)
	if err != nil {
		return nil, err
	}
	a.log.Info("process started", "container", c.ID, "exec", req.GetExecId(), "pid", p.Pid())
	return &emptypb.Empty{}, nil
}

// SignalProcess signals one process; SIGKILL without an exec id is for the whole container.
func (a *Agent) SignalProcess(_ context.Context, req *agent.SignalProcessRequest) (*emptypb.Empty, error) {
	const lastSignal = 64
	sig := syscall.Signal(req.GetSignal())
	if req.GetSignal() > lastSignal {
		return nil, invalid("signal %d", req.GetSignal())
	}
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetExecId() == "" && sig == syscall.SIGKILL {
		if err := c.KillAll(); err != nil {
			a.log.Warn("killing a container", "container", c.ID, "error", err)
		}
		return &emptypb.Empty{}, nil
	}
	p, err := c.Process(req.GetExecId())
	if err != nil {
		return nil, err
	}
	if p == c.Init() {
		a.mu.Lock()
		if e := a.containers[c.ID]; e != nil {
			e.signaled = true
		}
		a.mu.Unlock()
	}
	return &emptypb.Empty{}, p.Signal(sig)
}

// UpdateContainer changes limits.
func (a *Agent) UpdateContainer(ctx context.Context, req *agent.UpdateContainerRequest) (*emptypb.Empty, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	res, err := container.ConvertResources(req.GetResources())
	if err != nil || res == nil {
		return &emptypb.Empty{}, err
	}
	return &emptypb.Empty{}, c.Update(ctx, res)
}

// StatsContainer reads usage.
func (a *Agent) StatsContainer(_ context.Context, req *agent.StatsContainerRequest) (*agent.StatsContainerResponse, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	cg, err := c.Stats()
	if err != nil {
		return nil, err
	}
	return &agent.StatsContainerResponse{CgroupStats: cg, NetworkStats: networkStats("/sys/class/net")}, nil
}

// PauseContainer freezes a container.
func (a *Agent) PauseContainer(ctx context.Context, req *agent.PauseContainerRequest) (*emptypb.Empty, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.Pause(ctx)
}

// ResumeContainer thaws a container.
func (a *Agent) ResumeContainer(ctx context.Context, req *agent.ResumeContainerRequest) (*emptypb.Empty, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.Resume(ctx)
}

// pauseProcess is what a sandbox container runs, whatever the host's image would have run.
func pauseProcess(p *agent.Process) *agent.Process {
	return &agent.Process{
		Args: []string{"/pause", "pause"}, Cwd: "/", Env: []string{"PATH=/"}, User: &agent.User{UID: 65535, GID: 65535},
		NoNewPrivileges: true, Terminal: false, OOMScoreAdj: p.GetOOMScoreAdj(), Capabilities: &agent.LinuxCapabilities{},
	}
}

// usesPause reports whether the root comes from the guest itself.
func usesPause(storages []*agent.Storage) bool {
	return slices.ContainsFunc(storages, func(s *agent.Storage) bool {
		sandbox, err := isSandboxImage(s)
		return s.GetDriver() == driverImage && err == nil && sandbox
	})
}
