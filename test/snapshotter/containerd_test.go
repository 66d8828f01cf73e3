package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/test/containerd"
)

// layers are three, on top of each other that hide and replace what is below.
func layers(t *testing.T) []v1.Layer {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	base := []tar.Header{{Name: "bin/", Mode: 0o755}, {Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}, {Name: "etc/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}}
	for _, applet := range []string{"sh", "cat", "ls", "echo", "sleep", "stat", "find"} {
		base = append(base, tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink, Mode: 0o777})
	}
	text := func(n string) tar.Header { return tar.Header{Name: n, Mode: 0o644, Size: int64(len(n))} }
	dir := func(n string) tar.Header { return tar.Header{Name: n, Mode: 0o755} }
	middle := []tar.Header{dir("data/"), text("data/gone"), text("data/kept"), dir("opaque/"), text("opaque/hidden")}
	top := []tar.Header{dir("data/"), {Name: "data/.wh.gone"}, {Name: "data/suid", Mode: 0o4755, Size: 9, Uid: 7},
		{Name: "data/second", Linkname: "data/suid", Typeflag: tar.TypeLink, Mode: 0o4755, Uid: 7}, dir("opaque/"), {Name: "opaque/.wh..wh..opq"}, text("opaque/seen")}
	var all []v1.Layer
	for _, headers := range [][]tar.Header{base, middle, top} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if h.Typeflag == 0 && strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
			data := []byte(h.Name)
			if h.Name == "bin/busybox" {
				data = busybox
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// push puts an image into the node's registry. A change of its configuration is made last.
func (n *node) push(ref string, change func(*v1.ConfigFile), layers ...v1.Layer) {
	n.t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		n.t.Fatal(err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		n.t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}
	change(file)
	if image, err = mutate.ConfigFile(image, file); err != nil {
		n.t.Fatal(err)
	}
	tag, err := tagOf(n.registry.Addr(), ref)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := remote.Write(tag, image, remote.WithContext(n.call())); err != nil {
		n.t.Fatal(err)
	}
}

func tagOf(registry, ref string) (ggcrname.Reference, error) {
	_, path, _ := strings.Cut(ref, "/")
	return ggcrname.NewTag(registry+"/"+path, ggcrname.Insecure)
}

// look is a script that shows what is in a container, and want what it prints.
const (
	look = `find /data /opaque | while read f; do stat -c '%n %a %u' $f; done; stat -c '%h links' /data/suid; cat /data/suid; echo; echo new > /data/kept; cat /data/kept`
	want = "/data 755 0\n/data/kept 644 0\n/data/second 4755 7\n/data/suid 4755 7\n/opaque 755 0\n/opaque/seen 644 0\n2 links\ndata/suid\nnew\n"
)

func sorted(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// rootsOf are the root hashes that a node has, and that the author computes of the same layers.
func rootsOf(t *testing.T, n *node, layers []v1.Layer) (have, should []string) {
	t.Helper()
	found, err := filepath.Glob(n.path("root/snapshots/*/" + blockmount.LayerFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range found {
		l, err := blockmount.Read(file)
		if err != nil {
			t.Error(err)
		}
		have = append(have, l.Root)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		result, err := layer.Build(t.Context(), r, nil, layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		should = append(should, result.Root)
	}
	return have, should
}

// TestContainerd pulls through CRI and ctr, runs pods by runc on block layers, and takes all of it away again.
func TestContainerd(t *testing.T) {
	for _, version := range containerd.Versions(t, containerd.V16, containerd.V2) {
		t.Run(version, func(t *testing.T) {
			n := start(t, version)
			three := layers(t)
			image, second := registryHost+"/test/three:1", registryHost+"/test/two:1"
			n.push(image, func(*v1.ConfigFile) {}, three...)
			n.push(second, func(*v1.ConfigFile) {}, three[1], three[0], three[2])
			if err := n.pull(image, n.handler); err != nil {
				t.Fatal(err)
			}
			have, should := rootsOf(t, n, three)
			sort.Strings(have)
			sort.Strings(should)
			if strings.Join(have, " ") != strings.Join(should, " ") {
				t.Errorf("the node's root hashes are %v, the author's %v", have, should)
			}
			if err := containerd.Push(n.call(), n.registry.Addr(), containerd.Pause(t)); err != nil {
				t.Fatal(err)
			}
			got := n.pod(image, n.handler, look, func() {})
			if sorted(got) != sorted(want) {
				t.Errorf("in the container:\n%swant\n%s", got, want)
			}
			t.Run("another image with the same layers", func(t *testing.T) {
				if err := n.pull(second, n.handler); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(n.logs(), `from="layers that are there"`) {
					t.Error("what is there was downloaded or unpacked again")
				}
				if got := n.pod(second, n.handler, "ls /data; ls /opaque", func() {}); got != "kept\nsecond\nsuid\nseen\n" {
					t.Errorf("in the container: %q", got)
				}
				if stored := len(storedLayers(t, n)); stored != 4 { // three of the images, one of pause
					t.Errorf("%d layers are stored, want 4", stored)
				}
			})
			t.Run("kill and restart under a running container", func(t *testing.T) {
				got := n.pod(image, n.handler, "sleep 2; cat /opaque/seen; cat /data/suid", func() {
					n.stop(syscall.SIGKILL)
					n.serve()
				})
				if got != "opaque/seendata/suid\n" {
					t.Errorf("in the container: %q", got)
				}
				if got := n.pod(image, n.handler, look, func() {}); sorted(got) != sorted(want) {
					t.Errorf("in a container after it:\n%s", got)
				}
			})
			t.Run("beside overlayfs", func(t *testing.T) { besideOverlayfs(t, n, version, image) })
			t.Run("by ctr", func(t *testing.T) { byCtr(t, n, version) })
			t.Run("a wrong diffID", func(t *testing.T) { wrongDiffID(t, n, three) })
			if unpacked := strings.Contains(n.logs(), `from="the blob"`); unpacked != (containerd.Series(version) == containerd.V16) {
				t.Errorf("containerd unpacked layers for nothing: %v, which only 1.6 has to", unpacked)
			}
			t.Run("removed", func(t *testing.T) { removed(t, n, image, second) })
		})
	}
}

// besideOverlayfs runs the same image on overlayfs at the same time: as a pod where handlers have snapshotters of their own.
func besideOverlayfs(t *testing.T, n *node, version, image string) {
	before := len(mountsIn(n.dir))
	if containerd.Series(version) != containerd.V16 {
		if err := n.pull(image, ""); err != nil {
			t.Fatal(err)
		}
		if got := n.pod(image, "", look, func() {}); sorted(got) != sorted(want) {
			t.Errorf("in a pod on overlayfs:\n%s", got)
		}
	} else {
		if _, err := n.Ctr(n.call(), "", "images", "pull", "--plain-http", "--snapshotter", "overlayfs", n.registry.Addr()+"/test/three:1"); err != nil {
			t.Fatal(err)
		}
		got, err := n.Ctr(n.call(), "", "run", "--rm", "--snapshotter", "overlayfs", n.registry.Addr()+"/test/three:1", "snapshotter-overlay", "/bin/sh", "-c", look)
		if err != nil || sorted(got) != sorted(want) {
			t.Errorf("in a container on overlayfs: %v\n%s", err, got)
		}
		n.removeImage(n.registry.Addr() + "/test/three:1")
	}
	if after := len(mountsIn(n.dir)); after > before {
		t.Errorf("%d layers were mounted and %d are", before, after)
	}
}

// byCtr pulls without any labels, in a namespace of its own, and gets the same layers.
func byCtr(t *testing.T, n *node, version string) {
	before := len(storedLayers(t, n))
	args := []string{"images", "pull", "--plain-http", "--snapshotter", name}
	if containerd.Series(version) == containerd.V2 {
		args = append(args, "--local")
	}
	ref := n.registry.Addr() + "/test/three:1"
	if _, err := n.Ctr(n.call(), "other", append(args, ref)...); err != nil {
		t.Fatal(err)
	}
	if after := len(storedLayers(t, n)); after != before {
		t.Errorf("there were %d layers and are %d", before, after)
	}
	out, err := n.Ctr(n.call(), "other", "run", "--rm", "--snapshotter", name, ref, "snapshotter-ctr", "/bin/sh", "-c", look)
	if err != nil || sorted(out) != sorted(want) {
		t.Errorf("in the container: %q, %v", out, err)
	}
	if _, err := n.Ctr(n.call(), "other", "images", "rm", "--sync", ref); err != nil {
		t.Error(err)
	}
}

// wrongDiffID pulls an image whose configuration names another tar than its layer is.
func wrongDiffID(t *testing.T, n *node, three []v1.Layer) {
	image := registryHost + "/test/wrong:1"
	n.push(image, func(c *v1.ConfigFile) {
		c.RootFS.DiffIDs = append([]v1.Hash{}, c.RootFS.DiffIDs...)
		c.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	}, three[1])
	if err := n.pull(image, n.handler); err == nil || !strings.Contains(err.Error(), "diff") && !strings.Contains(err.Error(), "uncompressed digest") {
		t.Errorf("an image with a wrong diffID is pulled: %v", err)
	}
}

// removed takes images and the snapshotter away.
func removed(t *testing.T, n *node, images ...string) {
	for _, image := range images {
		n.removeImage(image)
	}
	n.removeImage(containerd.PauseImage)
	n.until("all layers have gone", func(context.Context) bool { return len(storedLayers(t, n)) == 0 })
	n.until("all snapshots have gone", func(ctx context.Context) bool {
		out, err := n.Ctr(ctx, "", "snapshots", "--snapshotter", name, "ls")
		return err == nil && len(strings.Split(strings.TrimSpace(out), "\n")) == 1
	})
	n.stop(syscall.SIGTERM)
	out, err := exec.CommandContext(n.call(), n.binary, "remove", "--root", n.path("root"), "--socket", n.path("s.sock")).CombinedOutput()
	if err != nil {
		t.Errorf("removing it: %v: %s", err, out)
	}
	if _, err := os.Stat(n.path("root")); err == nil {
		t.Error("the root is still there")
	}
}

func storedLayers(t *testing.T, n *node) []string {
	t.Helper()
	found, err := filepath.Glob(n.path("root/layers/*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
