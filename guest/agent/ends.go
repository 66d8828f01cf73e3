package agent

import (
	"context"
	"fmt"
	"syscall"

	"github.com/cloister/cloister/wire/agent"
)

// noteEnd tells the policy how a container has ended, as soon as it has: what may run next can depend on it, so that it is not left
// to the host to ask.
func (a *Agent) noteEnd(e *entry) {
	defer close(e.noted)
	<-e.c.Ended()
	a.mu.Lock()
	status := e.c.Init().ExitCode()
	if e.signaled && status == 0 { // one that ends well because the host asked it to has not finished its work
		status = 128 + int(syscall.SIGTERM)
	}
	a.mu.Unlock()
	if err := a.cfg.Gate.Exited(context.Background(), e.c.ID, status); err != nil {
		e.notedErr = fmt.Errorf("telling the policy how container %s has ended: %w", e.c.ID, err)
		a.log.Warn("a container's end is not known to the policy", "container", e.c.ID, "error", err)
	}
}

// WaitProcess waits for the end of a process. The policy learns of the end of a container's first process before the
// host does.
func (a *Agent) WaitProcess(ctx context.Context, req *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	c, err := a.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	e := a.containers[c.ID]
	a.mu.Unlock()
	p, err := c.Process(req.GetExecId())
	if err != nil {
		return nil, err
	}
	code, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if p == c.Init() && e != nil {
		select {
		case <-e.noted:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if e.notedErr != nil {
			return nil, e.notedErr
		}
	}
	return &agent.WaitProcessResponse{Status: int32(code)}, nil
}
