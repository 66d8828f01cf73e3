package cri

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
)

// LayeredImage is an image of the registry that is on the node as block layers only.
const LayeredImage = "registry.cloister.test/layered:1"

// snapshotter starts cloister-snapshotter for a containerd that is not there yet; its socket is linked to c.sock in the folder.
func snapshotter(t testing.TB) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cri-layers")
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
		// containerd may have ended before it told the snapshotter that a pod's own snapshot is not needed any more.
		mounts, _ := filepath.Glob(dir + "/root/snapshots/*/mnt")
		for _, at := range mounts {
			_ = unix.Unmount(at, unix.MNT_DETACH) // most are not mounted
		}
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

// pullFor pulls an image as the kubelet does for pods of a handler.
func (c *Client) pullFor(t testing.TB, image, handler string) {
	t.Helper()
	if _, err := c.Images.PullImage(call(t), pullRequest(image, handler)); err != nil {
		t.Fatalf("pulling %s for %s: %v", image, handler, err)
	}
}

// pullRequest is what the kubelet asks of CRI for pods of a handler.
func pullRequest(image, handler string) *runtime.PullImageRequest {
	return &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image, RuntimeHandler: handler},
		SandboxConfig: &runtime.PodSandboxConfig{Annotations: map[string]string{"io.containerd.cri.runtime-handler": handler}}}
}

// TestHostLayers runs a pod in a virtual machine whose container's root is layers that the snapshotter has on the node.
func TestHostLayers(t *testing.T) { each(t, "1.7", hostLayers) }

func hostLayers(t *testing.T, version string) {
	in := install(t)
	dir := snapshotter(t)
	registry, err := testregistry.Start(testregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	opts := in.handler(t, version, "layers", "--snapshotter="+dir+"/s.sock")
	opts.Mirrors = map[string]string{"registry.cloister.test": "http://" + registry.Addr()}
	w := start(t, opts)
	if err := os.Symlink(w.Daemon.Address, dir+"/c.sock"); err != nil {
		t.Fatal(err)
	}
	image := containerd.Busybox(t, LayeredImage)
	image.Config.Labels = map[string]string{"from": "the registry"}
	image.Files = append(image.Files, containerd.File{Path: "note", Mode: 0o644, Data: []byte("from a layer\n")})
	if err := containerd.Push(t.Context(), registry.Addr(), image); err != nil {
		t.Fatal(err)
	}
	w.pullFor(t, LayeredImage, "layers")
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

// edit changes the files of a pattern and returns what puts them back. Names of one file are changed once.
func edit(t *testing.T, pattern string, change func([]byte) []byte) (undo func()) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	before := map[string][]byte{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = data
	}
	for name, data := range before {
		if err := os.WriteFile(name, change(bytes.Clone(data)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		for name, data := range before {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSealedLayers runs a confidential pod whose container's root is a sealed layer: the node has ciphertext, and the guest opens it with a
// key that it gets from the broker when it has proved what it is.
func TestSealedLayers(t *testing.T) { each(t, "1.7", sealedLayers) }

func sealedLayers(t *testing.T, version string) {
	dir := snapshotter(t)
	w := newSecretPod(t, version, "--snapshotter="+dir+"/s.sock")
	if err := os.Symlink(w.Daemon.Address, dir+"/c.sock"); err != nil {
		t.Fatal(err)
	}
	const keyID = "kbs:///default/image-key/sealed"
	key := w.file(t, "image.key", strings.Repeat("k", 32))
	w.run(t, append([]string{"secret", "put", keyID, key}, w.admin...)...)
	_, port, _ := strings.Cut(w.address, ":")
	local := "127.0.0.1:" + port
	image := containerd.Busybox(t, "registry.cloister.test/plain:1")
	image.Files = append(image.Files, containerd.File{Path: "note", Mode: 0o644, Data: []byte("only the guest reads this\n")})
	if err := containerd.Push(t.Context(), local, image); err != nil {
		t.Fatal(err)
	}
	out := w.run(t, "image", "seal", local+"/plain:1", local+"/sealed:1", "--key", key, "--key-id", keyID, "--json")
	var done struct {
		Digest string
		Layers []struct{ Root string }
	}
	if err := json.Unmarshal([]byte(out), &done); err != nil || len(done.Layers) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	ref := w.address + "/sealed@" + done.Digest
	w.pullFor(t, ref, handlerTPM)
	files, err := filepath.Glob(dir + "/root/layers/sealed-*/layer.erofs")
	if err != nil || len(files) != 1 {
		t.Fatalf("the node has the sealed layers %v, %v", files, err)
	}
	if data, err := os.ReadFile(files[0]); err != nil || strings.Contains(string(data), "only the guest") {
		t.Errorf("the node can read the layer, or %v", err)
	}
	// What the policy says of layers is tested elsewhere: this one allows the root hash, and all that is not a container.
	text, err := os.ReadFile("../../docs/howto/pod-policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	policy := "package agent_policy\n"
	for _, m := range regexp.MustCompile(`(?m)^default (\w+Request)\b`).FindAllSubmatch(text, -1) {
		if rule := string(m[1]); rule != "CreateContainerRequest" && rule != "HostStorageRequest" {
			policy += "default " + rule + " := true\n"
		}
	}
	policy += fmt.Sprintf(`default CreateContainerRequest := false
CreateContainerRequest { input.storages[0].driver == "image_guest_pull"; input.storages[0].source == "pause" }
CreateContainerRequest { input.storages[0].options[_] == "X-kata.dmverity.roothash=%s" }
`, done.Layers[0].Root)
	annotation, manifest := w.initdata(t, policy)
	w.run(t, "refvalue", "compute", "--runtime-config", w.config, "-o", "values.json", manifest)
	w.run(t, append([]string{"refvalue", "add", "values.json"}, w.admin...)...)
	p := w.NewPod(t, handlerTPM, "sealed")
	p.Config.Annotations["cloister.dev/initdata"] = annotation
	p.Config.Linux.Resources = resources()
	p.Run()
	main := Shell("main", `cat /note
awk '$2 == "/" {print "root", $1, $3}' /proc/mounts`)
	main.Image.Image = ref
	swapped := edit(t, dir+"/root/snapshots/*/layer.erofs.dmverity", func(b []byte) []byte {
		return []byte(strings.Replace(string(b), done.Layers[0].Root, strings.Repeat("0a", 32), 1))
	})
	refused(t, attempt(t, p, main), "CreateContainerRequest is blocked by policy")
	swapped()
	flipped := edit(t, dir+"/root/snapshots/*/layer.erofs", func(b []byte) []byte { b[1024] ^= 1; return b })
	refused(t, attempt(t, p, main), "what the host has attached does not fit the root hash", done.Layers[0].Root)
	flipped()
	k := p.RunContainer(t, main)
	k.ExpectExit(0)
	if out := k.Output(); out != "only the guest reads this\nroot layers overlay\n" {
		t.Errorf("got %q", out)
	}
	k.Remove()
	p.Remove()
}
