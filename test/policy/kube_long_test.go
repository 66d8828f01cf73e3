package policy_test

import (
	"strings"
	"testing"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestManyRestarts: a container that fails every few minutes for weeks still gets its files, and what was never admitted can be removed. What
// the host can add to the state without a container has an end.
func TestManyRestarts(t *testing.T) {
	g := generate(t, strings.Replace(partlyManifest, "UNKNOWN", partlyToken, 1), oneImage{}, nil)
	const limit, less, restarts = "room if count(data.pstate) - removed < 4096", "room if count(data.pstate) - removed < 64", 80
	if strings.Count(g.policy, limit) != 1 {
		t.Fatalf("the rules do not have %q", limit)
	}
	g.policy = strings.Replace(g.policy, limit, less, 1) // the same in less time
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	for n := range restarts {
		create := g.request(t, "a", kubepod.ID(n+1))
		root := mountAt(create, "/etc/some").Source
		allowAll(t, e, version(root, "..2026"))
		allowAll(t, e, links(root, "..2026"))
		mustAllow(t, e, create)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: create.ContainerId})
	}
	mustDeny(t, e, g.request(t, "a", kubepod.ID(1)))
	state, err := e.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	left := 64 - (len(state) - restarts)
	for n := range left {
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(1000 + n)})
	}
	mustDeny(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(2000)})
	mustDeny(t, e, dir(mountAt(g.request(t, "a", kubepod.ID(2001)), "/etc/some").Source))
}
