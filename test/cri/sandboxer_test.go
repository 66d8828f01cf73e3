package cri

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// TestSandboxService has containerd ask the shim for the pod itself (sandboxer = "shim"): there is no pause container then.
func TestSandboxService(t *testing.T) {
	vmtest.Need(t)
	containerd.Need(t)
	shim, config := installed(t)
	// For pods of the shim's own containerd looks in PATH alone, whatever runtime_path says.
	t.Setenv("PATH", filepath.Dir(shim)+":"+os.Getenv("PATH"))
	w := &world{handler: "cloister", runtime: shim}
	w.Client = start(t, containerd.Options{Version: containerd.V2, Runtimes: []containerd.Runtime{{
		Handler: "cloister", Type: "io.containerd.cloister.v2", Path: shim, ConfigPath: config, Sandboxer: "shim",
		Annotations: []string{"io.katacontainers.*", "cloister.dev/*"},
	}}})
	for _, s := range []scenario{{"life", life}, {"restarts", restarts}} {
		t.Run(s.name, func(t *testing.T) { s.run(t, w) })
	}
}
