package policy_test

import (
	"os"
	"testing"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesPod is the life of a simple pod.
func TestKubernetesPod(t *testing.T) {
	p, web := kubepod.Pause(), kubepod.Workload("web")
	e := kubeEngine(t, kubepod.Data(p, web))
	mustAllow(t, e, kubepod.Sandbox())
	mustAllow(t, e, p.Request(kubepod.SandboxID))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: kubepod.SandboxID})
	mustAllow(t, e, web.Request(kubepod.ID(1)))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: kubepod.ID(1)})
	mustAllow(t, e, &agent.ReadStreamRequest{ContainerId: kubepod.ID(1)})
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(1)})
	mustAllow(t, e, web.Request(kubepod.ID(2)))
	r := web.Request(kubepod.ID(3))
	r.OCI.Process.Cwd = "/root"
	if err := ask(e, r); err == nil {
		t.Error("allowed")
	} else {
		t.Log(err)
	}
}

// kubeEngine enforces the rules of author/genpolicy over data.
func kubeEngine(t testing.TB, data kubepod.Object) *gate.Engine {
	t.Helper()
	rules, err := os.ReadFile("../../author/genpolicy/rules.rego")
	if err != nil {
		t.Fatal(err)
	}
	text, err := kubepod.Policy(string(rules), data)
	if err != nil {
		t.Fatal(err)
	}
	e, err := gate.New(text, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
