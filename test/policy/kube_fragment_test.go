package policy_test

import (
	"testing"

	"github.com/cloister/cloister/author/fragment"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/didx509/didtest"
)

// TestKubernetesFragment lives a pod one container of which comes with a signed fragment.
func TestKubernetesFragment(t *testing.T) {
	const feed = "registry.example/team/side"
	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	o := fragment.SignOptions{Chain: ca.Issue(t, didtest.Leaf(), key.Public()), Key: key, Feed: feed}
	issuer, err := fragment.Issuer(o.Chain)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(svn uint64, containers ...*kubepod.Container) []byte {
		t.Helper()
		var list []any
		for _, c := range containers {
			list = append(list, c.Entry)
		}
		module, err := fragment.Module(feed, issuer, svn, list)
		if err != nil {
			t.Fatal(err)
		}
		o.SVN = svn
		raw, err := fragment.Sign(module, o)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	pod := func(required bool) (*gate.Engine, *kubepod.Container, *kubepod.Container) {
		p, web := kubepod.Pause(), kubepod.Workload("web")
		data := kubepod.Data(p, web)
		data["fragments"] = []kubepod.Object{{"issuer": issuer, "feed": feed, "minimum_svn": 2, "required": required}}
		e := kubeEngine(t, data)
		mustAllow(t, e, kubepod.Sandbox())
		return e, p, web
	}
	side, evil := kubepod.Workload("side"), kubepod.Workload("evil")
	id := kubepod.ID

	e, p, web := pod(false)
	mustAllow(t, e, p.Request(kubepod.SandboxID))
	mustAllow(t, e, web.Request(id(1)))
	mustDeny(t, e, side.Request(id(2)))
	if err := e.LoadFragment(t.Context(), signed(1, evil), didtest.At); err == nil {
		t.Error("a version below the floor is loaded")
	}
	if err := e.LoadFragment(t.Context(), signed(3, side), didtest.At); err != nil {
		t.Fatal(err)
	}
	if err := e.LoadFragment(t.Context(), signed(2, evil), didtest.At); err == nil {
		t.Error("an older version is loaded after a newer one")
	}
	mustDeny(t, e, evil.Request(id(3)))
	mustDeny(t, e, web.Request(id(1))) // the state is what it was
	mustAllow(t, e, side.Request(id(2)))
	mustDeny(t, e, side.Request(id(4))) // which it may be once
	for _, n := range []int{1, 2} {
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id(n)})
	}
	if err := e.LoadFragment(t.Context(), signed(4, kubepod.Workload("later")), didtest.At); err != nil {
		t.Fatal(err)
	}
	mustAllow(t, e, kubepod.Workload("later").Request(id(5)))
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id(2)})
	mustDeny(t, e, &agent.StatsContainerRequest{ContainerId: id(2)})
	mustAllow(t, e, &agent.StatsContainerRequest{ContainerId: id(1)})

	e, p, _ = pod(true)
	mustDeny(t, e, p.Request(kubepod.SandboxID)) // not before the fragment
	if err := e.LoadFragment(t.Context(), signed(2, side), didtest.At); err != nil {
		t.Fatal(err)
	}
	mustAllow(t, e, p.Request(kubepod.SandboxID))
}
