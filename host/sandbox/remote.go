package sandbox

import (
	"context"

	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/remote"
)

// startRemote asks a service, on this host, for a VM elsewhere. The service also makes the network, in the pod's namespace.
func (s *Sandbox) startRemote(ctx context.Context) (vmm.Machine, error) {
	if err := s.needInitdata(); err != nil {
		return nil, err
	}
	netns, err := s.netns()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.state.RemoteSocket = s.runtime.VMM.RemoteSocket
	s.mu.Unlock()
	if err := s.writeState(); err != nil {
		return nil, err
	}
	vm, err := remote.Start(ctx, vmm.Config{VCPUs: s.plan.VCPUs, MemoryMiB: s.plan.MemoryMiB, NetNS: netns}, s.remoteConfig())
	if err != nil {
		return nil, err
	}
	return vm, nil
}

func (s *Sandbox) remoteConfig() remote.Config {
	c := &s.runtime.VMM
	a := cri.Annotations(s.cfg.Spec.Annotations)
	return remote.Config{
		Socket: c.RemoteSocket, Timeout: s.runtime.Timeouts.Remote, ID: s.cfg.ID, SandboxName: a.PodName(), SandboxNamespace: a.PodNamespace(),
		MachineType: c.MachineType, Image: s.runtime.Guest.Image, Initdata: string(s.cfg.Runtime.Initdata), GPUs: c.GPUs, GPUModel: c.GPUModel,
	}
}

// stopRemote ends a VM whose shim is gone.
func stopRemote(ctx context.Context, socket, id string) error {
	return remote.CleanStale(ctx, socket, id)
}
