package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	eventtypes "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/internal/paths"
)

// maxSpec bounds a container's config.json.
const maxSpec = 16 << 20

func readSpec(bundle string) (*specs.Spec, error) {
	f, err := paths.OpenRegular(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	if len(text) > maxSpec {
		return nil, fmt.Errorf("the container's specification has more than %d bytes", maxSpec)
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("reading the container's specification: %w", err)
	}
	if spec.Process == nil || spec.Linux == nil {
		return nil, errors.New("the container's specification has no process, or is not for Linux")
	}
	return &spec, nil
}

// Create makes a container; the first one makes the sandbox.
func (s *Service) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if r.GetCheckpoint() != "" {
		return nil, status.Error(codes.Unimplemented, "containers in virtual machines cannot be restored from a checkpoint")
	}
	spec, err := readSpec(r.GetBundle())
	if err != nil {
		return nil, answer(err)
	}
	if err := sandbox.CheckID(r.GetID()); err != nil {
		return nil, invalid("%v", err)
	}
	c := &container{id: r.GetID(), bundle: r.GetBundle(), spec: spec, execs: map[string]*process{}}
	if err := s.add(c); err != nil {
		return nil, err
	}
	init, err := s.create(ctx, c, r)
	if err != nil {
		s.mu.Lock()
		delete(s.containers, c.id)
		s.mu.Unlock()
		s.log.Error("creating a container", "container", c.id, "error", err)
		return nil, answer(err)
	}
	pid := uint32(init.pod.PID())
	s.publish(&eventtypes.TaskCreate{
		ContainerID: r.GetID(), Bundle: r.GetBundle(), Rootfs: r.GetRootfs(), Pid: pid, Checkpoint: r.GetCheckpoint(),
		IO: &eventtypes.TaskIO{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
	})
	init.follow()
	s.mu.Lock()
	c.init = init
	s.mu.Unlock()
	return &task.CreateTaskResponse{Pid: pid}, nil
}

// add takes the container's name.
func (s *Service) add(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.containers[c.id]; there {
		return status.Errorf(codes.AlreadyExists, "container %s exists already", c.id)
	}
	s.containers[c.id] = c
	return nil
}

func (s *Service) create(ctx context.Context, c *container, r *task.CreateTaskRequest) (*process, error) {
	pod, made, err := s.podFor(ctx, c, r.GetOptions())
	if err != nil {
		return nil, err
	}
	init, err := newProcess(ctx, s, pod, c, "", streams{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, nil)
	if err == nil {
		if err = pod.CreateContainer(ctx, sandbox.Container{ID: c.id, Bundle: c.bundle, Spec: c.spec, Rootfs: mounts(r.GetRootfs())}); err != nil {
			init.abandon()
		}
	}
	if err != nil && made {
		s.dropPod(ctx)
	}
	return init, err
}

// podFor is the sandbox that a container belongs to. The first container makes it.
func (s *Service) podFor(ctx context.Context, c *container, options *anypb.Any) (pod *sandbox.Sandbox, made bool, err error) {
	s.mu.Lock()
	pod = s.pod
	s.mu.Unlock()
	kind := cri.Annotations(c.spec.Annotations).Kind()
	switch {
	case pod != nil && kind == cri.KindContainer:
		if of := cri.Annotations(c.spec.Annotations).SandboxID(); of != "" && of != s.cfg.ID {
			return nil, false, fmt.Errorf("container %s is of the pod %.100q; this shim serves %s", c.id, of, s.cfg.ID)
		}
		return pod, false, nil
	case pod != nil:
		return nil, false, fmt.Errorf("the pod %s runs already; this shim serves no other", s.cfg.ID)
	case kind == cri.KindContainer:
		return nil, false, fmt.Errorf("the pod %s of container %s does not run", s.cfg.ID, c.id)
	}
	if pod, err = s.startPod(ctx, podConfig{spec: c.spec}, options); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	s.owner = c.id
	s.mu.Unlock()
	return pod, true, nil
}

func mounts(list []*types.Mount) []volume.Mount {
	var out []volume.Mount
	for _, m := range list {
		out = append(out, volume.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}
