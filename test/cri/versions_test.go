package cri

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	for _, version := range containerd.Versions(t, containerd.V2) {
		if containerd.Series(version) == containerd.V2 {
			t.Run("configuration of "+version, func(t *testing.T) { mergedConfig(t, in, version) })
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

// mergedConfig has containerd merge a node's configuration with the file that the command prints, in each version that it may have.
func mergedConfig(t *testing.T, in installation, version string) {
	for schema, plugin := range map[string]string{"2": "io.containerd.grpc.v1.cri", "3": "io.containerd.cri.v1.runtime"} {
		dir := t.TempDir()
		printed, err := exec.CommandContext(t.Context(), filepath.Join(in.bin, "cloister"), "config", "containerd", "--for", version,
			"--config-version", schema, "--snapshotter").Output()
		if err != nil {
			t.Fatalf("cloister config containerd: %v", err)
		}
		node := fmt.Sprintf("version = %s\nimports = [%q]\n[plugins.%q.containerd.runtimes.before]\nruntime_type = \"io.containerd.runc.v2\"\n",
			schema, filepath.Join(dir, "cloister.toml"), plugin)
		for name, text := range map[string]string{"cloister.toml": string(printed), "config.toml": node} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dump, err := exec.CommandContext(t.Context(), containerd.Binary(t, version), "--config", filepath.Join(dir, "config.toml"), "config", "dump").Output()
		if err != nil {
			t.Fatalf("containerd config dump: %v", err)
		}
		for _, want := range []string{"runtimes.before]", "runtimes.cloister]", "runtime_platforms.cloister]", "[proxy_plugins.cloister]", "[proxy_plugins.cloister-diff]"} {
			if !strings.Contains(string(dump), want) {
				t.Errorf("with files of version %s containerd %s has no %s:\n%s", schema, version, want, dump)
			}
		}
	}
}
