package shim

import (
	"cmp"
	"context"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
		a, err = s.containerMetrics(ctx, c)
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

// statsTime is how long a guest may take for its figures, and pauses how many times that it is not asked again after it has not given them:
// containerd asks one container of the node after the other.
const (
	statsTime   = 10 * time.Second
	statsPauses = 6
)

// containerMetrics are the figures of a container, unless its guest has just been silent.
func (s *Service) containerMetrics(ctx context.Context, c *container) (*anypb.Any, error) {
	limit := cmp.Or(s.cfg.StatsTime, statsTime)
	s.mu.Lock()
	silent := s.silent
	s.mu.Unlock()
	if !silent.IsZero() && time.Since(silent) < statsPauses*limit {
		return nil, status.Errorf(codes.Unavailable, "the guest gave no figures in %s; it is asked again later", limit)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := c.metrics(ctx, c.init.pod)
	if status.Code(answer(err)) == codes.DeadlineExceeded { // ours, or the guest's, which knows it, too
		s.mu.Lock()
		s.silent = time.Now()
		s.mu.Unlock()
	}
	return a, err
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
