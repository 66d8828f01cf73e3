package policy_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// TestPodLife plays a whole pod as the host does.
func TestPodLife(t *testing.T) {
	e, plan := full(t)
	mustAllow(t, e, &agent.GuestDetailsRequest{})
	mustAllow(t, e, plan.Sandbox)
	for _, f := range plan.Files {
		mustAllow(t, e, f.Request)
	}
	for _, c := range plan.Containers {
		id := c.Create.ContainerId
		mustAllow(t, e, c.Create)
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id})
		mustAllow(t, e, &agent.WaitProcessRequest{ContainerId: id, ExecId: id})
		exited(t, e, id, 0)
		mustAllow(t, e, &agent.ReadStreamRequest{ContainerId: id, ExecId: id, Len: 4096})
		mustAllow(t, e, &agent.StatsContainerRequest{ContainerId: id})
		mustAllow(t, e, &agent.SignalProcessRequest{ContainerId: id, ExecId: id, Signal: 15})
	}
	web, shell := plan.Containers[1], plan.Containers[2]
	mustAllow(t, e, execOf(web, "exec-1", false, "/bin/healthy", "--quick"))
	mustAllow(t, e, execOf(shell, "exec-2", true, "/bin/date", "-u"))
	mustAllow(t, e, &agent.TtyWinResizeRequest{ContainerId: shell.Create.ContainerId, Row: 24, Column: 80})
	mustAllow(t, e, &agent.WriteStreamRequest{ContainerId: shell.Create.ContainerId, Data: []byte("ls\n")})
	mustAllow(t, e, &agent.CloseStdinRequest{ContainerId: shell.Create.ContainerId})
	for _, c := range plan.Containers {
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: c.Create.ContainerId})
	}
	mustAllow(t, e, &agent.DestroySandboxRequest{})
}

// execOf is an exec as the host sends it: the container's process with other arguments.
func execOf(c launch.Container, execID string, tty bool, args ...string) *agent.ExecProcessRequest {
	p := proto.Clone(c.Create.OCI.Process).(*agent.Process)
	p.Args, p.Terminal = args, tty
	return &agent.ExecProcessRequest{ContainerId: c.Create.ContainerId, ExecId: execID, Process: p}
}
