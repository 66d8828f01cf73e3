package policy_test

import (
	"testing"

	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesPod is the life of a simple pod.
func TestKubernetesPod(t *testing.T) {
	p, web := pause(), workload("web")
	e := kubeEngine(t, kubeData(p, web))
	mustAllow(t, e, kubeSandbox())
	mustAllow(t, e, p.request(sandboxID))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: sandboxID})
	mustAllow(t, e, web.request(containerID(1)))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: containerID(1)})
	mustAllow(t, e, &agent.ReadStreamRequest{ContainerId: containerID(1)})
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: containerID(1)})
	mustAllow(t, e, web.request(containerID(2)))
	r := web.request(containerID(3))
	r.OCI.Process.Cwd = "/root"
	if err := ask(e, r); err == nil {
		t.Error("allowed")
	} else {
		t.Log(err)
	}
}
