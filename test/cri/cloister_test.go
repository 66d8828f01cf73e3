package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// TestCloister asks the scenarios of pods in virtual machines without confidentiality.
func TestCloister(t *testing.T) {
	vmtest.Need(t)
	containerd.Need(t)
	shim, config := installed(t)
	for _, version := range []string{containerd.V2, containerd.V16} {
		t.Run(version, func(t *testing.T) {
			w := &world{handler: "cloister", runtime: shim}
			w.Client = start(t, containerd.Options{Version: version, IPv6: true, Env: []string{"CLOISTER_RUNTIME_CONFIG=" + config}, Runtimes: []containerd.Runtime{
				{Handler: "cloister", Type: "io.containerd.cloister.v2", Path: shim, Annotations: []string{"io.katacontainers.*", "cloister.dev/*"}}}})
			for _, s := range scenarios() {
				t.Run(s.name, func(t *testing.T) { s.run(t, w) })
			}
		})
	}
}

// installed is the shim, built, and a configuration that names a guest image of this source tree.
func installed(t *testing.T) (shim, config string) {
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
	dir := t.TempDir()
	shim = filepath.Join(dir, "containerd-shim-cloister-v2")
	if err := os.WriteFile(shim, containerd.GoProgram(t, root, "./cmd/containerd-shim-cloister-v2"), 0o755); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(dir, "runtime.toml")
	text := fmt.Sprintf(`[guest]
kernel = %q
initrd = %q
[timeouts]
boot = "2m" # other tests may keep this machine busy
`, filepath.Join(image.Dir, image.Manifest.Kernel.Path), filepath.Join(image.Dir, image.Manifest.Initrd.Path))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return shim, config
}
