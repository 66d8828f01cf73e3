package shim

import (
	"context"
	"encoding/json"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/host/sandbox"
)

// maxExecs bounds the processes beside a container's first: each has files and memory here, and only the guest says when one has ended.
const maxExecs = 512

// Exec remembers a process that Start will run.
func (s *Service) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if r.GetExecID() == r.GetID() || sandbox.CheckID(r.GetExecID()) != nil {
		return nil, invalid("%.100q cannot name a process of container %s", r.GetExecID(), c.id)
	}
	var spec specs.Process
	if err := json.Unmarshal(r.GetSpec().GetValue(), &spec); err != nil {
		return nil, invalid("reading the process to run in container %s: %v", c.id, err)
	}
	spec.Terminal = r.GetTerminal()
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil, precondition("the pod %s does not run", s.cfg.ID)
	}
	c.mu.Lock()
	_, there := c.execs[r.GetExecID()]
	full := len(c.execs) >= maxExecs
	if !there && !full {
		c.execs[r.GetExecID()] = nil // taken, while a logging program starts
	}
	c.mu.Unlock()
	if there {
		return nil, status.Errorf(codes.AlreadyExists, "process %s exists already in container %s", r.GetExecID(), c.id)
	}
	if full {
		return nil, status.Errorf(codes.ResourceExhausted, "container %s has %d processes beside its first that were not deleted: no more are kept",
			c.id, maxExecs)
	}
	p, err := newProcess(ctx, s, pod, c, r.GetExecID(), streams{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, &spec)
	c.mu.Lock()
	if err == nil {
		c.execs[r.GetExecID()] = p
	} else {
		delete(c.execs, r.GetExecID())
	}
	c.mu.Unlock()
	if err != nil {
		return nil, answer(err)
	}
	s.publish(&eventtypes.TaskExecAdded{ContainerID: c.id, ExecID: p.exec})
	return &emptypb.Empty{}, nil
}
