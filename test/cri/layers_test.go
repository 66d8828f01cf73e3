package cri

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
	"github.com/cloister/cloister/test/vmtest"
)

// LayeredImage is an image of the registry that is on the node as block layers only.
const LayeredImage = "registry.cloister.test/layered:1"

// snapshotter starts cloister-snapshotter for a containerd that is not there yet; its socket is linked to c.sock in the folder.
func snapshotter(t *testing.T) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "snp")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "cloister-snapshotter")
	if err := os.WriteFile(program, containerd.GoProgram(t, root, "./cmd/cloister-snapshotter"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", "--root", dir+"/root", "--socket", dir+"/s.sock", "--containerd", dir+"/c.sock")
	out := newExpect(t)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the snapshotter said:\n%s", out.text())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	out.wait("msg=serving")
	return dir
}

// TestHostLayers runs a pod in a virtual machine whose container's root is layers that the snapshotter has on the node.
func TestHostLayers(t *testing.T) {
	t.Parallel()
	vmtest.Need(t)
	containerd.Need(t)
	in := install(t)
	dir := snapshotter(t)
	registry, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	table, err := exec.CommandContext(t.Context(), filepath.Join(in.bin, "cloister"), "config", "containerd", "--for", containerd.V2,
		"--snapshotter="+dir+"/s.sock", "--handler", "layers="+in.config).Output()
	if err != nil {
		t.Fatalf("cloister config containerd: %v", err)
	}
	w := start(t, containerd.Options{Version: containerd.V2, Path: []string{in.bin}, DropIn: string(table),
		Mirrors: map[string]string{"registry.cloister.test": "http://" + registry.Addr()}})
	if err := os.Symlink(w.Daemon.Address, dir+"/c.sock"); err != nil {
		t.Fatal(err)
	}
	image := containerd.Busybox(t, LayeredImage)
	image.Config.Labels = map[string]string{"from": "the registry"}
	image.Files = append(image.Files, containerd.File{Path: "note", Mode: 0o644, Data: []byte("from a layer\n")})
	if err := containerd.Push(t.Context(), registry.Addr(), image); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Images.PullImage(call(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: LayeredImage, RuntimeHandler: "layers"},
		SandboxConfig: &runtime.PodSandboxConfig{Annotations: map[string]string{"io.containerd.cri.runtime-handler": "layers"}}}); err != nil {
		t.Fatal(err)
	}
	p := w.NewPod(t, "layers", "layers").Run()
	for _, name := range []string{"one", "two"} {
		main := Shell(name, `cat /note && echo changed > /note && cat /note
awk '$2 == "/" {print "root", $1, $3}' /proc/mounts
ls /sys/block`)
		main.Image.Image = LayeredImage
		k := p.RunContainer(t, main)
		k.ExpectExit(0)
		out := k.Output()
		for _, want := range []string{"from a layer\nchanged\n", "root layers overlay\n", "dm-0"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in %q", name, want, out)
			}
		}
		if n := strings.Count(out, "\nvd"); n != 1 {
			t.Errorf("%s: %d disks, expected one: %q", name, n, out)
		}
		k.Remove()
	}
	p.Remove()
	if _, err := w.Images.RemoveImage(call(t), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: LayeredImage}}); err != nil {
		t.Error(fmt.Errorf("removing the image: %w", err))
	}
}
