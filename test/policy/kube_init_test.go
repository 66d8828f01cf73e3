package policy_test

import (
	"testing"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesInitOnce: an init container is tried until it has succeeded, and never after that.
func TestKubernetesInitOnce(t *testing.T) {
	p, setup, web := kubepod.Pause(), kubepod.Workload("setup"), kubepod.Workload("web")
	p.Entry["image"] = nil
	for n, c := range []*kubepod.Container{setup, web} {
		c.Entry["image"], c.Entry["order"], c.Entry["kind"] = image(kubepod.DigestOne), n+1, []string{"init", "container"}[n]
		c.Entry["must_run"], c.Entry["restarts"] = n == 0, true
	}
	e := kubeEngine(t, ours(kubepod.Data(p, setup, web)))
	mustAllow(t, e, kubepod.Sandbox())
	for n, status := range []int{1, 0} {
		id := kubepod.ID(n + 1)
		mustAllow(t, e, setup.Request(id))
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id})
		exited(t, e, id, status)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id})
	}
	mustDeny(t, e, setup.Request(kubepod.ID(3)))
	mustAllow(t, e, web.Request(kubepod.ID(4)))
	mustDeny(t, e, setup.Request(kubepod.ID(5))) // beside the container that it was for
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: kubepod.ID(4)})
	exited(t, e, kubepod.ID(4), 0)
	mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(4)})
	mustAllow(t, e, web.Request(kubepod.ID(6)))
	// Without an order there is nothing that it prepares.
	data := ours(kubepod.Data(p, setup, web))
	data["cloister"].(kubepod.Object)["enforce_order"] = false
	e = kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	for n := range 2 {
		id := kubepod.ID(n + 1)
		mustAllow(t, e, setup.Request(id))
		mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id})
		exited(t, e, id, 0)
	}
}

// TestKubernetesSandboxStorages: the storages of the sandbox are those of the policy, to the last member.
func TestKubernetesSandboxStorages(t *testing.T) {
	e := kubeEngine(t, kubepod.Data(kubepod.Pause(), kubepod.Workload("web")))
	for name, change := range map[string]func(*agent.Storage){
		"driver":         func(s *agent.Storage) { s.Driver = "virtio-fs" },
		"source":         func(s *agent.Storage) { s.Source = "kataShared" },
		"file system":    func(s *agent.Storage) { s.Fstype = "virtiofs" },
		"place":          func(s *agent.Storage) { s.MountPoint = "/run/kata-containers/shared/containers" },
		"options":        func(s *agent.Storage) { s.Options = append(s.Options, "exec") },
		"driver options": func(s *agent.Storage) { s.DriverOptions = []string{"create_filesystem"} },
		"group":          func(s *agent.Storage) { s.FsGroup = &agent.FSGroup{GroupId: 1} },
		"shared":         func(s *agent.Storage) { s.Shared = !s.Shared },
	} {
		r := kubepod.Sandbox()
		change(r.Storages[0])
		if err := ask(e, r); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	mustAllow(t, e, kubepod.Sandbox())
}
