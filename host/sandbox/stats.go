package sandbox

import (
	"context"
	"fmt"
	"strconv"

	"github.com/cloister/cloister/host/cgroup"
)

// HostStats are the figures of the whole sandbox on the host, which nobody but the host's kernel can make up; nil without a control group.
func (s *Sandbox) HostStats(ctx context.Context) (*cgroup.Stats, error) {
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	if group == nil {
		return nil, nil
	}
	st, err := group.Stats(ctx)
	return &st, err
}

// Info describes the sandbox for people.
func (s *Sandbox) Info() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]string{
		"tee": s.state.TEE, "monitor": s.state.Monitor, "accelerator": s.state.Accel, "vcpus": strconv.Itoa(s.state.VCPUs),
		"memory": fmt.Sprintf("%d MiB", s.state.MemoryMiB), "directory": s.dir,
	}
}
