package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	client "github.com/cloister/cloister/host/agent"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// Bounds around the end of a container.
const (
	// drainTimeout is how long output may still arrive after the exit of a process.
	drainTimeout = 10 * time.Second
	// killTimeout is how long the guest may take to report the end of a killed container.
	killTimeout = 15 * time.Second
	readSize    = 32 << 10
	// signals as the guest's kernel numbers them
	sigTerm = 15
	sigKill = 9
)

// containers runs the init containers one after the other and then all others. ctx ends when the pod shall stop.
func (s *supervisor) containers(ctx, base context.Context) (int, error) {
	life, end := context.WithCancel(base)
	defer end()
	for i := range s.opts.Plan.Containers {
		c := manage(&s.opts.Plan.Containers[i])
		if !c.Init {
			continue
		}
		code, err := s.initContainer(ctx, life, c)
		if err != nil || code != 0 {
			return code, err
		}
	}
	type ended struct {
		index, code int
		err         error
	}
	var running []*managed
	done := make(chan ended)
	for i := range s.opts.Plan.Containers {
		c := manage(&s.opts.Plan.Containers[i])
		if c.Init {
			continue
		}
		if err := s.createAndStart(ctx, c); err != nil {
			end()
			for range running {
				<-done
			}
			return 0, err
		}
		running = append(running, c)
		go func() {
			code, err := s.follow(ctx, life, c)
			done <- ended{i, code, err}
		}()
	}
	s.state.update(func(x *State) { x.Phase = Running })
	s.emit(Event{Time: time.Now().UTC(), Step: StepRunning})

	codes := make([]int, len(s.opts.Plan.Containers))
	var firstErr error
	stop := ctx.Done()
	var stopped sync.WaitGroup
	for left := len(running); left > 0; {
		select {
		case e := <-done:
			left--
			codes[e.index] = e.code
			if e.err != nil && ctx.Err() != nil {
				codes[e.index] = 128 + sigKill // it was being stopped; the end of the VM is its end
			} else if e.err != nil && firstErr == nil {
				firstErr = e.err
				end() // one container that cannot be followed any more ends the pod
			}
		case <-stop:
			stop = nil
			stopped.Go(func() { s.stopContainers(life, end, running) })
		}
	}
	end()
	stopped.Wait()
	if firstErr != nil {
		return 0, firstErr
	}
	for _, code := range codes {
		if code != 0 {
			return code, nil
		}
	}
	return 0, nil
}

// initContainer runs a container to its end. One that fails is run again unless its policy is Never.
func (s *supervisor) initContainer(ctx, life context.Context, c *managed) (int, error) {
	if c.restart == launch.RestartAlways {
		c.restart = launch.RestartOnFailure // an init container that succeeded is done
	}
	if err := s.createAndStart(ctx, c); err != nil {
		return 0, err
	}
	killed := context.AfterFunc(ctx, func() { s.signal(life, c, sigKill, false) })
	defer killed()
	code, err := s.follow(ctx, life, c)
	if err == nil && ctx.Err() != nil {
		return code, context.Cause(ctx)
	}
	return code, err
}

func (s *supervisor) createAndStart(ctx context.Context, c *managed) error {
	a, req := s.agent, c.request()
	err := s.step(StepCreate, c.Name, func() error {
		return a.Call(ctx, s.opts.CreateTimeout, "creating container "+c.Name, func(cc context.Context) error {
			_, err := a.CreateContainer(cc, req)
			return err
		})
	})
	if err != nil {
		return err
	}
	s.state.container(c.Name, func(x *ContainerState) { x.State, x.ID = ContainerCreated, req.GetContainerId() })
	return s.step(StepStart, c.Name, func() error {
		err := a.Call(ctx, client.CallTimeout, "starting container "+c.Name, func(cc context.Context) error {
			_, err := a.StartContainer(cc, &agent.StartContainerRequest{ContainerId: req.GetContainerId()})
			return err
		})
		if err == nil {
			now := time.Now().UTC()
			s.state.container(c.Name, func(x *ContainerState) { x.State, x.Started, x.Ended, x.ExitCode = ContainerRunning, &now, nil, nil })
		}
		return err
	})
}

// follow waits for the end of a started container, and of its restarts.
func (s *supervisor) follow(ctx, life context.Context, c *managed) (int, error) {
	var pause backoff
	for {
		start := s.opts.Clock.Now()
		code, err := s.waitExit(life, c)
		if err != nil {
			return 0, err
		}
		again := c.restart == launch.RestartAlways || c.restart == launch.RestartOnFailure && code != 0
		if !again || ctx.Err() != nil {
			return code, nil
		}
		if s.opts.Clock.Sleep(ctx, pause.next(s.opts.Clock.Now().Sub(start))) != nil {
			return code, nil
		}
		err = s.restart(ctx, c)
		switch {
		case err != nil && ctx.Err() != nil:
			return code, nil // the pod stops while the container was between two runs
		case err != nil:
			return 0, err
		}
	}
}

// restart takes an ended container away and makes the next one of the same entry in the policy.
func (s *supervisor) restart(ctx context.Context, c *managed) error {
	err := s.step(StepRestart, c.Name, func() error {
		return s.agent.Call(ctx, client.CallTimeout, "removing container "+c.Name+" for its restart", func(cc context.Context) error {
			_, err := s.agent.RemoveContainer(cc, &agent.RemoveContainerRequest{ContainerId: c.id()})
			return err
		})
	})
	if err != nil {
		return err
	}
	c.renew()
	s.state.container(c.Name, func(x *ContainerState) { x.Restarts++ })
	return s.createAndStart(ctx, c)
}

// waitExit copies the output of a process and waits for its end.
func (s *supervisor) waitExit(life context.Context, c *managed) (int, error) {
	log, err := s.out.open(c.Name)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err := log.close(); err != nil {
			s.opts.Logger.Warn("output was not kept", "pod", s.opts.Plan.Name, "container", c.Name, "error", err)
		}
	}()
	id, exec := c.id(), c.execID()
	rctx, stopReading := context.WithCancel(life)
	defer stopReading()
	var readers sync.WaitGroup
	readers.Go(func() { readStream(rctx, s.agent.ReadStdout, id, exec, log.stream("stdout")) })
	if !c.request().GetOCI().GetProcess().GetTerminal() {
		readers.Go(func() { readStream(rctx, s.agent.ReadStderr, id, exec, log.stream("stderr")) })
	}
	s.feed(rctx, c)
	var code int
	start := time.Now()
	err = s.agent.Call(life, 0, "waiting for container "+c.Name, func(cc context.Context) error {
		r, err := s.agent.WaitProcess(cc, &agent.WaitProcessRequest{ContainerId: id, ExecId: exec})
		code = int(r.GetStatus())
		return err
	})
	drain := time.AfterFunc(drainTimeout, stopReading)
	if err != nil {
		stopReading()
	}
	readers.Wait()
	drain.Stop()
	if err != nil {
		return 0, err
	}
	now := time.Now().UTC()
	s.state.container(c.Name, func(x *ContainerState) { x.State, x.Ended, x.ExitCode = ContainerExited, &now, &code })
	s.emit(Event{Time: now, Step: StepExit, Container: c.Name, Took: time.Since(start), ExitCode: &code})
	return code, nil
}

// readFunc is ReadStdout or ReadStderr.
type readFunc func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)

// readStream copies a stream until its end, which is an empty answer or, after the exit of the process, an error.
func readStream(ctx context.Context, read readFunc, container, exec string, w io.Writer) {
	for {
		r, err := read(ctx, &agent.ReadStreamRequest{ContainerId: container, ExecId: exec, Len: readSize})
		if err != nil || len(r.GetData()) == 0 {
			return
		}
		if _, err := w.Write(r.GetData()); err != nil {
			return
		}
	}
}

// stopContainers ends the running containers: politely, then not.
func (s *supervisor) stopContainers(life context.Context, end context.CancelFunc, running []*managed) {
	grace := s.stopGrace()
	s.state.update(func(x *State) { x.Phase = Stopping })
	s.emit(Event{Time: time.Now().UTC(), Step: StepStop})
	steps := []struct {
		signal uint32
		wait   time.Duration
	}{{sigTerm, grace}, {sigKill, killTimeout}}
	for _, st := range steps {
		var sent sync.WaitGroup
		for _, c := range running {
			// The polite signal is for the first process, the other for all of the container.
			sent.Go(func() { s.signal(life, c, st.signal, st.signal == sigTerm) })
		}
		sent.Wait()
		t := time.NewTimer(st.wait)
		select {
		case <-life.Done(): // all have ended
			t.Stop()
			return
		case <-t.C:
		}
	}
	end() // the guest does not report their end; the VM goes anyway
}

// signal sends a signal. That the process has ended meanwhile is what was wanted.
func (s *supervisor) signal(ctx context.Context, c *managed, sig uint32, firstOnly bool) {
	req := &agent.SignalProcessRequest{ContainerId: c.id(), Signal: sig}
	if firstOnly {
		req.ExecId = c.execID()
	}
	err := s.agent.Call(ctx, client.CallTimeout, fmt.Sprintf("sending signal %d to container %s", sig, c.Name), func(cc context.Context) error {
		_, err := s.agent.SignalProcess(cc, req)
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.opts.Logger.Warn("stopping", "pod", s.opts.Plan.Name, "error", err)
	}
}
