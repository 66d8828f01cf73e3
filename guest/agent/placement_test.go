package agent

import (
	"testing"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// TestSharedPidNamespace shares the pid namespace of the first container for as long as that lives.
func TestSharedPidNamespace(t *testing.T) {
	a, _ := copier(t)
	end := make(chan struct{})
	a.sandbox = &sandbox{join: map[string]string{}, firstPid: 4711, firstEnd: end}
	a.containers = map[string]*entry{"c1": {c: &container.Container{ID: "c1"}}, "c2": {}}
	req := &agent.CreateContainerRequest{ContainerId: "c2", SandboxPidns: true}
	place, err := a.placement("c2", req)
	if err != nil || place.Join["pid"] != "/proc/4711/ns/pid" {
		t.Fatalf("got %v, %v, expected the namespace of the first container", place.Join, err)
	}
	close(end)
	place, err = a.placement("c2", req)
	if err != nil || place.Join["pid"] != "" {
		t.Fatalf("got %v, %v, expected a new namespace: the number may be another process's", place.Join, err)
	}
	a.containers["c3"] = &entry{} // two at once cannot both be the first
	if place, err = a.placement("c2", req); err == nil {
		t.Fatalf("got %v, expected an error", place.Join)
	}
}
