package pod

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// The pauses before restarts, as the kubelet makes them.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
	// goodRun is how long a container must have run for its failures to be forgotten.
	goodRun = 2 * maxBackoff
)

// Clock is the time that restarts are measured by.
type Clock interface {
	Now() time.Time
	// Sleep waits for d and returns nil, or the error of ctx when that ends first.
	Sleep(ctx context.Context, d time.Duration) error
}

type machineClock struct{}

func (machineClock) Now() time.Time { return time.Now() }

func (machineClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff is the pause before the next restart of one container.
type backoff time.Duration

// next returns the pause after a run that lasted so long.
func (b *backoff) next(ran time.Duration) time.Duration {
	if *b == 0 || ran >= goodRun {
		*b = backoff(firstBackoff)
	} else {
		*b = min(*b*2, backoff(maxBackoff))
	}
	return time.Duration(*b)
}

// managed is a container of the plan through its restarts. A removed id is never accepted again, so each restart has an
// id of its own: that of the plan and -r with the number of the restart, which is what the pod's policy admits.
type managed struct {
	*launch.Container
	restart  string // its restart policy
	restarts int
	current  atomic.Pointer[agent.CreateContainerRequest] // signals are sent while restarts go on
}

func manage(c *launch.Container) *managed {
	m := &managed{Container: c, restart: c.RestartPolicy}
	m.current.Store(c.Create)
	return m
}

// request is the one that creates, or has created, the present container.
func (m *managed) request() *agent.CreateContainerRequest { return m.current.Load() }

func (m *managed) id() string { return m.request().GetContainerId() }

// execID is the name of the container's first process.
func (m *managed) execID() string {
	if id := m.request().GetExecId(); id != "" {
		return id
	}
	return m.id()
}

// renew makes the request for the next restart. Besides the id only the places that are the container's own follow it:
// the files of the pod stay where they were sent to.
func (m *managed) renew() {
	m.restarts++
	old := m.Create.GetContainerId()
	id := fmt.Sprintf("%s-r%d", old, m.restarts)
	req := proto.CloneOf(m.Create)
	req.ContainerId = id
	if req.ExecId == old {
		req.ExecId = id
	}
	if root := req.GetOCI().GetRoot(); root != nil {
		root.Path = strings.ReplaceAll(root.Path, old, id)
	}
	if linux := req.GetOCI().GetLinux(); linux != nil {
		linux.CgroupsPath = strings.ReplaceAll(linux.CgroupsPath, old, id)
	}
	for _, s := range req.GetStorages() {
		s.MountPoint = strings.ReplaceAll(s.MountPoint, old, id)
	}
	m.current.Store(req)
}
