package sandbox

import (
	"context"
	"errors"
	"fmt"
)

// StopVM ends the guest and the VM at once; what was made on the host stays until Stop.
func (s *Sandbox) StopVM(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	if s.vm == nil {
		return nil
	}
	select {
	case <-s.vm.Exited():
	default:
		if !s.ready.IsZero() { // one that has never answered will not now
			s.destroyInGuest(ctx)
		}
	}
	now, cancel := context.WithCancel(ctx)
	cancel() // the guest has ended in order, or will not
	err := s.vm.Stop(now)
	if s.agent != nil {
		s.agent.Close()
	}
	return err
}

// Stop ends the VM and removes everything of the sandbox. A part that fails does not keep the others; what is left then, the next call
// tries to remove again.
func (s *Sandbox) Stop(ctx context.Context) error {
	s.teardown.Lock()
	defer s.teardown.Unlock()
	if s.removed {
		return nil
	}
	var err error
	if !s.down {
		s.down = true
		err = s.takeDown(ctx)
	} else {
		err = s.StopVM(ctx) // the only part that Cleanup cannot end for every monitor
	}
	if err = errors.Join(err, cleanup(ctx, s.dir)); err != nil {
		return fmt.Errorf("removing sandbox %s: %w", s.cfg.ID, err)
	}
	s.removed = true
	s.lock.Close()
	return nil
}

// takeDown ends what runs. What it cannot remove Cleanup finds by the sandbox's directory.
func (s *Sandbox) takeDown(ctx context.Context) error {
	s.stop()
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if s.forward != nil {
		add("port forwarding", s.forward.Close())
	}
	add("virtual machine", s.StopVM(ctx))
	if s.volumes != nil {
		add("volumes", s.volumes.Close(ctx))
	}
	if s.share != nil {
		add("shared directory", s.share.Close(ctx))
	}
	if s.net != nil {
		add("network", s.net.Detach(ctx))
	}
	if s.manage != nil {
		add("management socket", s.manage.Close())
	}
	s.workers.Wait()
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	if group != nil {
		add("control group", group.Destroy(ctx))
	}
	s.endRecord()
	s.endTrace(ctx)
	return errors.Join(errs...)
}
