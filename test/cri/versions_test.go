package cri

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/test/containerd"
)

// TestVersions starts the shim on each version of containerd, with a configuration that cannot work, and expects its refusal as CRI's error:
// that takes containerd's configuration as `cloister config containerd` prints it, the start of the shim in the form of this version, the
// version of the task service that they agreed upon, and the removal of it all. No virtual machine is started.
func TestVersions(t *testing.T) {
	t.Parallel()
	containerd.Need(t)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	in := installation{bin: t.TempDir(), config: filepath.Join(t.TempDir(), "runtime.toml")}
	for _, program := range []string{"containerd-shim-cloister-v2", "cloister"} {
		if err := os.WriteFile(filepath.Join(in.bin, program), containerd.GoProgram(t, root, "./cmd/"+program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const missing = "/nowhere/vmlinuz"
	if err := os.WriteFile(in.config, []byte("[guest]\nkernel = \""+missing+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, version := range containerd.Versions(t, containerd.V16, containerd.V2) {
		t.Run(version, func(t *testing.T) {
			opts := in.handler(t, version, "cloister")
			if containerd.Series(version) == containerd.V2 {
				opts.Runtimes = []containerd.Runtime{{Handler: "sandboxer", Type: "io.containerd.cloister.v2", ConfigPath: in.config, Sandboxer: "shim"}}
			}
			c := start(t, opts)
			for _, handler := range []string{"cloister", "sandboxer"} {
				if handler == "sandboxer" && len(opts.Runtimes) == 0 {
					continue
				}
				t.Run(handler, func(t *testing.T) {
					refused(t, c.NewPod(t, handler, "refused").TryRun(), missing, "hint:")
				})
			}
		})
	}
}
