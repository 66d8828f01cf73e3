package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"

	"github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/sizing"
	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/volume"
	pb "github.com/cloister/cloister/wire/agent"
)

// Container is what CreateContainer makes.
type Container struct {
	ID     string
	Bundle string
	Spec   *specs.Spec
	Rootfs []volume.Mount
}

// CreateContainer makes a container that waits for StartContainer. When it fails nothing of it is left.
func (s *Sandbox) CreateContainer(ctx context.Context, c Container) (err error) {
	ctx, end := s.trace.Step(ctx, "create", trace.String("container", containerName(c)))
	defer func() { end(err) }()
	if err := CheckID(c.ID); err != nil {
		return fmt.Errorf("creating a container: %w", err)
	}
	need, err := specRequest(c.Spec)
	if err != nil {
		return fmt.Errorf("creating container %s: %w", c.ID, err)
	}
	s.mu.Lock()
	if _, there := s.containers[c.ID]; there {
		s.mu.Unlock()
		return fmt.Errorf("creating container %s: %w", c.ID, ErrExists)
	}
	s.containers[c.ID] = &container{name: containerName(c), need: need, cpus: specCPUs(c.Spec)}
	if c.Spec.Process != nil {
		s.containers[c.ID].caps = c.Spec.Process.Capabilities
	}
	s.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		s.mu.Lock()
		delete(s.containers, c.ID)
		s.mu.Unlock()
	}()
	kind := cri.Annotations(c.Spec.Annotations).Kind()
	if kind == cri.KindContainer {
		if err := s.grow(ctx); err != nil {
			return fmt.Errorf("creating container %s: %w", c.ID, err)
		}
	}
	s.pin(ctx)
	var prepared *volume.Prepared
	err = s.step(ctx, "volumes", func(ctx context.Context) (err error) {
		prepared, err = s.volumes.Container(ctx, volume.Request{
			ID: c.ID, Sandbox: kind == cri.KindSandbox, Bundle: c.Bundle, Spec: c.Spec, Rootfs: c.Rootfs,
			ImageVolumes: s.imageVolumes,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("creating container %s: %w", c.ID, err)
	}
	defer func() {
		if err == nil {
			return
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		if rerr := s.volumes.Release(clean, c.ID); rerr != nil {
			s.log.Warn("giving back the volumes of a container that could not be created", "container", c.ID, "error", rerr)
		}
	}()
	req := &pb.CreateContainerRequest{
		ContainerId: c.ID, ExecId: c.ID, Devices: prepared.Devices, Storages: prepared.Storages,
		OCI: guestSpec(c.Spec, prepared, kind, c.Bundle, s.runtime.Seccomp()), SandboxPidns: sharesPIDs(c.Spec),
	}
	return s.agent.Call(ctx, s.runtime.Timeouts.CreateContainer, "creating container "+c.ID, func(cc context.Context) error {
		_, err := s.agent.CreateContainer(cc, req)
		return err
	})
}

// containerName is what people call a container.
func containerName(c Container) string {
	if name := cri.Annotations(c.Spec.Annotations).ContainerName(); name != "" {
		return name
	}
	return c.ID
}

// ErrExists means that there is a container of that name.
var ErrExists = errors.New("it exists already")

// specRequest is what a container asks for.
func specRequest(spec *specs.Spec) (sizing.Request, error) {
	if spec.Linux == nil {
		return sizing.Default(), nil
	}
	text, err := json.Marshal(&specs.Spec{Linux: &specs.Linux{Resources: spec.Linux.Resources}}) // the rest may be large
	if err != nil {
		return sizing.Request{}, err
	}
	return sizing.FromSpec(text)
}

// specCPUs is the CPU set that a container has on the host, or "".
func specCPUs(spec *specs.Spec) string {
	if spec.Linux == nil || spec.Linux.Resources == nil || spec.Linux.Resources.CPU == nil {
		return ""
	}
	return spec.Linux.Resources.CPU.Cpus
}

// grow brings the VM to what all of its containers need together.
func (s *Sandbox) grow(ctx context.Context) error {
	if s.plan.Static {
		return nil
	}
	s.growing.Lock()
	defer s.growing.Unlock()
	s.mu.Lock()
	var all []sizing.Request
	for _, c := range s.containers {
		all = append(all, c.need)
	}
	vcpus, memory := s.vcpus, s.memoryMiB
	s.mu.Unlock()
	total, err := sizing.Sum("containers", all...)
	if err != nil {
		return err
	}
	change, err := s.plan.Grow(vcpus, memory, total)
	if err == nil && change.VCPUs > 0 && s.emulated() {
		// Kernels ignore processors that come later, unless they know the hypervisor; they do not know emulation as one.
		s.log.Warn("processors are not added under software emulation", "sandbox", s.cfg.ID, "have", vcpus, "want", vcpus+change.VCPUs)
		change.VCPUs = 0
	}
	if err != nil || change == (sizing.Change{}) {
		return err
	}
	haveVCPUs, haveMemory, err := s.vm.Resize(ctx, vcpus+change.VCPUs, memory+change.MemoryMiB)
	if errors.Is(err, errors.ErrUnsupported) {
		s.log.Warn("the virtual machine keeps its size", "sandbox", s.cfg.ID, "want_vcpus", vcpus+change.VCPUs,
			"want_memory_mib", memory+change.MemoryMiB, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("growing the virtual machine: %w", err)
	}
	s.mu.Lock()
	s.vcpus, s.memoryMiB = haveVCPUs, haveMemory
	s.state.VCPUs, s.state.MemoryMiB = haveVCPUs, haveMemory
	group := s.group
	s.mu.Unlock()
	s.log.Info("sandbox has grown", "sandbox", s.cfg.ID, "vcpus", haveVCPUs, "memory_mib", haveMemory)
	if l := s.limits(); group != nil && l.MemoryBytes > 0 {
		l.MemoryBytes += int64(haveMemory-s.plan.MemoryMiB) << 20
		if err := group.Set(ctx, l); err != nil {
			return fmt.Errorf("raising the sandbox's limits: %w", err)
		}
	}
	if err := s.writeState(); err != nil {
		return err
	}
	err = s.call(ctx, "bringing processors and memory online", func(c context.Context) error {
		_, err := s.agent.OnlineCPUMem(c, &pb.OnlineCPUMemRequest{Wait: false, NbCpus: uint32(haveVCPUs), CpuOnly: false})
		return err
	})
	if err != nil {
		return fmt.Errorf("%w (hint: a pod whose containers all have limits gets its size at the start, and need not grow)", err)
	}
	return nil
}

// emulated says whether the VM's processors are software.
func (s *Sandbox) emulated() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Accel == vmm.AccelTCG
}

// StartContainer lets the container's first process run.
func (s *Sandbox) StartContainer(ctx context.Context, id string) (err error) {
	name := id
	s.mu.Lock()
	if c := s.containers[id]; c != nil {
		name = c.name
	}
	s.mu.Unlock()
	ctx, end := s.trace.Step(ctx, "start", trace.String("container", name))
	defer func() { end(err) }()
	return s.call(ctx, "starting container "+id, func(c context.Context) error {
		_, err := s.agent.StartContainer(c, &pb.StartContainerRequest{ContainerId: id})
		return err
	})
}

// Exec starts one more process in a container.
func (s *Sandbox) Exec(ctx context.Context, id, execID string, p *specs.Process) error {
	process := guestProcess(p)
	s.mu.Lock()
	if c := s.containers[id]; c != nil && reflect.DeepEqual(c.caps, p.Capabilities) {
		process.Capabilities = nil // it has the container's; policies refuse a process that brings its own
	}
	s.mu.Unlock()
	return s.call(ctx, "starting a process in container "+id, func(c context.Context) error {
		_, err := s.agent.ExecProcess(c, &pb.ExecProcessRequest{ContainerId: id, ExecId: execID, Process: process})
		return err
	})
}

// Wait waits for the end of a process, execID being the container's for its first, and returns its exit code.
func (s *Sandbox) Wait(ctx context.Context, id, execID string) (int, error) {
	var code int
	err := s.agent.Call(ctx, 0, "waiting for container "+id, func(c context.Context) error {
		r, err := s.agent.WaitProcess(c, &pb.WaitProcessRequest{ContainerId: id, ExecId: execID})
		code = int(r.GetStatus())
		return err
	})
	return code, err
}

// maxTermination is what the kubelet reads of a termination message.
const maxTermination = 4096

// CollectTermination fetches the termination message of a container that has ended, where the guest has a copy of the host's file.
// A policy may forbid it: then there is no message.
func (s *Sandbox) CollectTermination(ctx context.Context, id string) {
	if _, ok := s.volumes.TerminationLog(id); !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	var text string
	err := s.call(ctx, "reading the termination message of container "+id, func(c context.Context) error {
		r, err := s.agent.GetDiagnosticData(c, &pb.GetDiagnosticDataRequest{LogType: "termination_log", ContainerId: id})
		text = r.GetData()
		return err
	})
	if err == nil {
		err = s.volumes.WriteTerminationLog(id, []byte(text[:min(len(text), maxTermination)]))
	}
	if err != nil {
		s.log.Warn("a termination message was lost", "container", id, "error", err)
	}
}

// Signal sends a signal to one process, or with all to every process of the container.
func (s *Sandbox) Signal(ctx context.Context, id, execID string, signal uint32, all bool) error {
	if all {
		execID = ""
	}
	return s.call(ctx, fmt.Sprintf("sending signal %d to container %s", signal, id), func(c context.Context) error {
		_, err := s.agent.SignalProcess(c, &pb.SignalProcessRequest{ContainerId: id, ExecId: execID, Signal: signal})
		return err
	})
}

// ResizeTerminal sets the size of a process's terminal.
func (s *Sandbox) ResizeTerminal(ctx context.Context, id, execID string, rows, columns uint32) error {
	return s.call(ctx, "resizing the terminal of container "+id, func(c context.Context) error {
		_, err := s.agent.TtyWinResize(c, &pb.TtyWinResizeRequest{ContainerId: id, ExecId: execID, Row: rows, Column: columns})
		return err
	})
}

// UpdateContainer changes the limits of a container, and brings the VM to the size that takes. When it fails the container counts as
// before: a size that cannot be had must not be in the way of others.
func (s *Sandbox) UpdateContainer(ctx context.Context, id string, r *specs.LinuxResources) (err error) {
	need, err := specRequest(&specs.Spec{Linux: &specs.Linux{Resources: r}})
	if err != nil {
		return fmt.Errorf("updating container %s: %w", id, err)
	}
	s.mu.Lock()
	c, ok := s.containers[id]
	if !ok {
		s.mu.Unlock()
		return unknown(id)
	}
	old := c.need
	updated := merge(old, need)
	c.need = updated
	if r.CPU != nil && r.CPU.Cpus != "" {
		c.cpus = r.CPU.Cpus
	}
	s.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		s.mu.Lock()
		if c.need == updated {
			c.need = old
		}
		s.mu.Unlock()
	}()
	if err := s.grow(ctx); err != nil {
		return fmt.Errorf("updating container %s: %w", id, err)
	}
	s.pin(ctx)
	return s.call(ctx, "updating container "+id, func(cc context.Context) error {
		_, err := s.agent.UpdateContainer(cc, &pb.UpdateContainerRequest{ContainerId: id, Resources: guestResources(r)})
		return err
	})
}

// merge keeps what an update does not name.
func merge(old, update sizing.Request) sizing.Request {
	for _, x := range []struct{ to, from *int64 }{
		{&old.CPULimit, &update.CPULimit}, {&old.CPURequest, &update.CPURequest},
		{&old.MemoryLimit, &update.MemoryLimit}, {&old.MemoryRequest, &update.MemoryRequest},
	} {
		if *x.from > 0 {
			*x.to = *x.from
		}
	}
	return old
}

// Pause freezes a container, Resume thaws it.
func (s *Sandbox) Pause(ctx context.Context, id string) error {
	return s.call(ctx, "pausing container "+id, func(c context.Context) error {
		_, err := s.agent.PauseContainer(c, &pb.PauseContainerRequest{ContainerId: id})
		return err
	})
}

// Resume lets a paused container run again.
func (s *Sandbox) Resume(ctx context.Context, id string) error {
	return s.call(ctx, "resuming container "+id, func(c context.Context) error {
		_, err := s.agent.ResumeContainer(c, &pb.ResumeContainerRequest{ContainerId: id})
		return err
	})
}

// Stats is what a container uses, as the guest says.
func (s *Sandbox) Stats(ctx context.Context, id string) (*pb.StatsContainerResponse, error) {
	var r *pb.StatsContainerResponse
	err := s.call(ctx, "reading the usage of container "+id, func(c context.Context) (err error) {
		r, err = s.agent.StatsContainer(c, &pb.StatsContainerRequest{ContainerId: id})
		return err
	})
	return r, err
}

// RemoveContainer removes a container and gives back its volumes.
func (s *Sandbox) RemoveContainer(ctx context.Context, id string) error {
	s.mu.Lock()
	_, ok := s.containers[id]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	var errs []error
	if !s.exited() {
		err := s.call(ctx, "removing container "+id, func(c context.Context) error {
			_, err := s.agent.RemoveContainer(c, &pb.RemoveContainerRequest{ContainerId: id})
			return err
		})
		if e := (*agent.Error)(nil); errors.As(err, &e) && (e.Code == codes.NotFound || e.Code == codes.InvalidArgument) {
			err = nil // it is gone
		}
		if agent.IsDenied(err) {
			// Its processes have ended. A policy that keeps the rest in the guest does not keep the host's part.
			s.log.Warn("the guest keeps a container until the pod ends", "container", id, "error", err)
			err = nil
		}
		if s.exited() {
			err = nil // the guest's part went with the guest, during the call
		}
		errs = append(errs, err)
	}
	if err := s.volumes.Release(ctx, id); err != nil {
		if s.exited() { // disks went with the VM, and what is shared goes with the pod
			s.log.Warn("giving back the volumes of a container", "container", id, "error", err)
		} else {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.containers, id)
	s.mu.Unlock()
	return nil
}

// exited says whether the VM is gone, which is so a moment before Ended is closed.
func (s *Sandbox) exited() bool {
	select {
	case <-s.vm.Exited():
		return true
	default:
		return false
	}
}

// networkChanged brings the VM and the guest to the new state of the pod's network.
func (s *Sandbox) networkChanged(ctx context.Context, c network.Change) error {
	var errs []error
	for _, i := range c.Removed {
		errs = append(errs, s.vm.RemoveNIC(ctx, i.Name))
	}
	for _, i := range c.Added {
		errs = append(errs, s.addNIC(ctx, i))
	}
	return errors.Join(append(errs, s.configureNetwork(ctx))...)
}

// Agent is the connection to the guest, for the streams of its processes.
func (s *Sandbox) Agent() *agent.Client { return s.agent }
