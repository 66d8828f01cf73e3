package cri

import (
	"testing"

	"github.com/cloister/cloister/test/containerd"
)

// TestSandboxService has containerd ask the shim for the pod itself (sandboxer = "shim"): there is no pause container then.
func TestSandboxService(t *testing.T) { each(t, "2", sandboxService) }

func sandboxService(t *testing.T, version string) {
	in := install(t)
	opts := in.options(t, version) // for pods of the shim's own containerd looks in PATH alone, whatever runtime_path says
	opts.DropIn = ""
	config := in.config
	if containerd.OneConfigVersion(version) {
		config = "" // 2.0 to 2.2 take any runtime's options for runc's here, and fail; the environment names the file
	}
	opts.Runtimes = []containerd.Runtime{{Handler: "cloister", Type: "io.containerd.cloister.v2", ConfigPath: config, Sandboxer: "shim",
		Annotations: []string{"io.katacontainers.*", "cloister.dev/*"}}}
	w := &world{Client: start(t, opts), handler: "cloister", runtime: "io.containerd.cloister.v2"}
	for _, s := range []scenario{{"life", life, true}, {"restarts", restarts, true}} {
		t.Run(s.name, func(t *testing.T) { s.run(t, w) })
	}
}
