package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
)

// errPodStopped is why the start of a pod ended that was stopped meanwhile.
var errPodStopped = errors.New("the pod was stopped while it started")

// startPod makes the sandbox, of which there is one at a time.
func (s *Service) startPod(ctx context.Context, cfg podConfig, options *anypb.Any) (*sandbox.Sandbox, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start := &podStart{cancel: cancel, ended: make(chan struct{})}
	s.mu.Lock()
	if s.pod != nil || s.start != nil || s.down {
		s.mu.Unlock()
		return nil, precondition("the pod %s runs, starts or has ended already", s.cfg.ID)
	}
	s.start = start
	s.mu.Unlock()
	pod, err := s.makePod(ctx, cfg, options)
	s.mu.Lock()
	s.pod, s.start = pod, nil
	s.mu.Unlock()
	close(start.ended)
	if err != nil {
		return nil, err
	}
	go s.watchPod(pod)
	return pod, nil
}

func (s *Service) makePod(ctx context.Context, cfg podConfig, options *anypb.Any) (*sandbox.Sandbox, error) {
	if options == nil {
		options = s.cfg.Options
	}
	effective, err := runtimeconfig.Load(runtimeconfig.Request{
		Getenv: os.Getenv, OptionsType: options.GetTypeUrl(), Options: options.GetValue(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w (hint: correct it on the node; `cloister config example` prints every key, `cloister check -f FILE` checks the file)", err)
	}
	if effective, err = effective.Annotated(cfg.spec.Annotations); err != nil {
		return nil, err
	}
	if level := effective.Config.Level(); s.cfg.Level != nil && level != slog.LevelInfo { // without one, containerd's wish counts
		s.cfg.Level.Set(level)
	}
	for _, text := range effective.Config.Insecure() {
		s.log.Warn("insecure setting", "setting", text)
	}
	return sandbox.Create(ctx, sandbox.Config{
		Root: s.cfg.Root, Namespace: s.cfg.Namespace, ID: s.cfg.ID, Spec: cfg.spec, NetNS: cfg.netns, DNS: cfg.dns, Runtime: effective, Logger: s.log,
		StartVM: s.cfg.StartVM, OOM: s.oom, Self: s.cfg.Self,
	})
}

// oom counts and tells that a container has run out of memory.
func (s *Service) oom(id string) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c != nil {
		c.ooms.Add(1)
	}
	s.publish(&eventtypes.TaskOOM{ContainerID: id})
}

// watchPod notes why the VM ended; its processes see it by their connection.
func (s *Service) watchPod(pod *sandbox.Sandbox) {
	<-pod.Ended()
	if err := pod.Err(); err != nil {
		s.log.Error("the virtual machine has ended", "sandbox", s.cfg.ID, "error", err)
	}
	s.podEnded(pod.Err() != nil)
}

// dropPod removes the sandbox after its first container could not be made.
func (s *Service) dropPod(ctx context.Context) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.stopPod(clean); err != nil {
		s.log.Error("removing the sandbox", "sandbox", s.cfg.ID, "error", err)
	}
}

// removeTimeout bounds what is done to clean up when the caller's time is over.
const removeTimeout = 30 * time.Second

// stopPod ends and removes the sandbox. One that cannot be removed stays, so that the next call tries again.
func (s *Service) stopPod(ctx context.Context) error {
	s.mu.Lock()
	start := s.start
	s.mu.Unlock()
	if start != nil {
		start.cancel(errPodStopped)
		select {
		case <-start.ended:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the end of the pod's start: %w", ctx.Err())
		}
	}
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil
	}
	if err := pod.Stop(ctx); err != nil {
		return err
	}
	<-pod.Ended()
	s.podEnded(pod.Err() != nil)
	s.mu.Lock()
	if s.pod == pod {
		s.pod, s.owner = nil, ""
	}
	s.mu.Unlock()
	return nil
}

// shutPod is stopPod at the end of the shim: no pod is made after it.
func (s *Service) shutPod(ctx context.Context) error {
	s.mu.Lock()
	s.down = true
	s.mu.Unlock()
	return s.stopPod(ctx)
}
