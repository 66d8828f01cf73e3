package sandbox

import (
	"context"
	"fmt"
	"strconv"

	"github.com/cloister/cloister/host/cgroup"
)

// Metrics are the figures of a container in the form of this host's control groups, from the guest; with whole those of the sandbox on
// the host, which nobody but the host's kernel can make up.
func (s *Sandbox) Metrics(ctx context.Context, id string, whole bool) (any, error) {
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	var host cgroup.Stats
	if group != nil {
		var err error
		if host, err = group.Stats(ctx); err != nil {
			return nil, err
		}
	}
	if whole {
		return host.Metrics(cgroup.Mode()), nil
	}
	r, err := s.Stats(ctx, id)
	if err != nil {
		return nil, err
	}
	guest := cgroup.FromGuest(r.GetCgroupStats())
	if group != nil {
		guest = guest.Bounded(host)
	}
	return guest.Metrics(cgroup.Mode()), nil
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
