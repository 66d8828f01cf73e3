package shim

import (
	"context"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/shim/stats"
)

// Stats is what a container uses; for the pod's own container, what the whole pod uses on the host.
func (s *Service) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	var a *anypb.Any
	if cri.Annotations(c.spec.Annotations).Kind() == cri.KindSandbox {
		a, err = podMetrics(ctx, c.init.pod)
	} else {
		a, err = c.metrics(ctx, c.init.pod)
	}
	if err != nil {
		return nil, answer(err)
	}
	return &task.StatsResponse{Stats: a}, nil
}

// podMetrics are the figures of the pod on the host.
func podMetrics(ctx context.Context, pod *sandbox.Sandbox) (*anypb.Any, error) {
	host, err := pod.HostStats(ctx)
	if err != nil {
		return nil, err
	}
	if host == nil {
		host = &cgroup.Stats{}
	}
	return stats.Sandbox(*host, nil, cgroup.Mode())
}

// metrics are the figures of a container from the guest.
func (c *container) metrics(ctx context.Context, pod *sandbox.Sandbox) (*anypb.Any, error) {
	host, err := pod.HostStats(ctx)
	if err != nil {
		return nil, err
	}
	r, err := pod.Stats(ctx, c.id)
	if err != nil {
		return nil, err
	}
	return stats.Container(r, host, c.ooms.Load(), cgroup.Mode())
}
