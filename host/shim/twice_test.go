package shim

import (
	"errors"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/cloister/cloister/host/sandbox"
)

// TestTwoShims has a second shim for a sandbox that runs, as two containerds on one node with the same namespace make it, and its deletion.
func TestTwoShims(t *testing.T) {
	e := newEnv(t)
	m := e.pod()
	dir, err := sandbox.Dir(e.cfg.Root, e.cfg.Namespace, e.cfg.ID)
	e.must(err)
	second := New(e.cfg)
	bundle := e.bundle(specOf("sandbox"))
	if _, err := second.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: bundle}); err == nil {
		t.Error("a sandbox was made twice")
	}
	if err := sandbox.Cleanup(testContext(t), dir); !errors.Is(err, sandbox.ErrInUse) {
		t.Errorf("a sandbox that runs was cleaned up: %v", err)
	}
	select {
	case <-m.Exited():
		t.Error("the virtual machine of the first shim has ended")
	default:
	}
	e.run("c1", untilTerm)
}
