package cri

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// TestCloister asks the scenarios of pods in virtual machines without confidentiality.
func TestCloister(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	containerd.Need(t)
	in := install(t)
	for _, version := range containerd.Versions(t, containerd.V2, containerd.V16) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			opts := in.options(t, version)
			opts.IPv6 = true
			w := &world{Client: start(t, opts), handler: "cloister", runtime: "io.containerd.cloister.v2"}
			for _, s := range scenarios() {
				if s.brief || version != containerd.V16 {
					t.Run(s.name, func(t *testing.T) { s.run(t, w) })
				}
			}
		})
	}
}

// installation is a folder with the programs of a node and the runtime's configuration, which names a guest image of this source tree.
type installation struct {
	bin, config string
}

func install(t testing.TB) installation {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	image, err := guestimage.Build(t.Context(), guestimage.Options{CacheDir: filepath.Join(vmtest.Home(t), "cache", "guest"),
		LockPath: filepath.Join(root, "guest.lock"), RepoDir: root})
	if err != nil {
		t.Fatal("building the guest image:", err)
	}
	in := installation{bin: t.TempDir(), config: filepath.Join(t.TempDir(), "runtime.toml")}
	for _, program := range []string{"containerd-shim-cloister-v2", "cloister"} {
		if err := os.WriteFile(filepath.Join(in.bin, program), containerd.GoProgram(t, root, "./cmd/"+program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf(`[guest]
kernel = %q
initrd = %q
[timeouts]
boot = "4m" # other tests may keep this machine busy
`, filepath.Join(image.Dir, image.Manifest.Kernel.Path), filepath.Join(image.Dir, image.Manifest.Initrd.Path))
	if err := os.WriteFile(in.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return in
}

// options are those of a containerd with the runtime table that `cloister config containerd` prints.
func (in installation) options(t testing.TB, version string) containerd.Options {
	t.Helper()
	opts := in.handler(t, version, "cloister")
	opts.Env = []string{"CLOISTER_RUNTIME_CONFIG=" + in.config}
	return opts
}

// handler are the options with a handler of another name, which finds its configuration by the table alone. There may be more flags for
// the command that prints the table.
func (in installation) handler(t testing.TB, version, name string, flags ...string) containerd.Options {
	t.Helper()
	args := append([]string{"config", "containerd", "--for", version, "--handler", name + "=" + in.config}, flags...)
	if containerd.OneConfigVersion(version) {
		args = append(args, "--config-version", "2") // that of the test's main configuration
	}
	table, err := exec.CommandContext(t.Context(), filepath.Join(in.bin, "cloister"), args...).Output()
	if err != nil {
		t.Fatalf("cloister config containerd: %v", err)
	}
	return containerd.Options{Version: version, Path: []string{in.bin}, DropIn: string(table)}
}
