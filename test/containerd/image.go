package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one entry of an image's layer. A path that ends with a slash is a directory, a Link makes it a symbolic link.
type File struct {
	Path string
	Data []byte
	Mode int64
	Link string
	UID  int
}

// Image is an image that a test makes: one layer and a configuration.
type Image struct {
	Name   string // with a tag
	Files  []File
	Config v1.Config
}

// Build makes the image.
func (i Image) Build() (v1.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range i.Files {
		h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Uid: f.UID, Gid: f.UID, Typeflag: tar.TypeReg, Size: int64(len(f.Data))}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case strings.HasSuffix(f.Path, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("making the layer of %s: %s: %w", i.Name, f.Path, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("making the layer of %s: %s: %w", i.Name, f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", i.Config
	return mutate.ConfigFile(image, file)
}

// Import puts images into the daemon's store, for CRI.
func (d *Daemon) Import(images ...Image) {
	d.t.Helper()
	for _, i := range images {
		image, err := i.Build()
		if err != nil {
			d.t.Fatal(err)
		}
		tag, err := name.NewTag(i.Name)
		if err != nil {
			d.t.Fatal(err)
		}
		file := filepath.Join(d.t.TempDir(), "image.tar")
		if err := tarball.WriteToFile(file, tag, image); err != nil {
			d.t.Fatal(err)
		}
		if _, err := d.Ctr(d.t.Context(), "", "images", "import", file); err != nil {
			d.t.Fatal(err)
		}
	}
}

// Push puts an image into a registry at HOST:PORT, below the path and tag of its name.
func Push(ctx context.Context, registry string, i Image) error {
	image, err := i.Build()
	if err != nil {
		return err
	}
	_, path, ok := strings.Cut(i.Name, "/")
	if !ok {
		return fmt.Errorf("the image name %q has no registry", i.Name)
	}
	tag, err := name.NewTag(registry+"/"+path, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(tag, image, remote.WithContext(ctx))
}

// GoProgram builds a package of the module in the folder dir as a static binary.
func GoProgram(t testing.TB, dir, pkg string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// accounts are users and groups for images of tests.
var accounts = []File{
	{Path: "etc/", Mode: 0o755}, {Path: "tmp/", Mode: 0o1777}, {Path: "root/", Mode: 0o700}, {Path: "home/tester/", Mode: 0o755, UID: 1000},
	{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000:tester:/home/tester:/bin/sh\n")},
	{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\ntester:x:1000:\nhelpers:x:2000:tester\n")},
}

// Pause makes the image of sandbox containers.
func Pause(t testing.TB) Image {
	t.Helper()
	root := filepath.Join(toolsDir(t), "..", "..", "..")
	return Image{Name: PauseImage, Files: []File{{Path: "pause", Mode: 0o755, Data: GoProgram(t, root, "./test/containerd/pause")}},
		Config: v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}}
}

// Busybox makes an image with the distribution's static busybox and links for all that it can.
func Busybox(t testing.TB, name string) Image {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.CommandContext(t.Context(), "/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := append([]File{{Path: "bin/", Mode: 0o755}, {Path: "bin/busybox", Mode: 0o755, Data: data}}, accounts...)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			files = append(files, File{Path: "bin/" + applet, Link: "busybox", Mode: 0o777})
		}
	}
	return Image{Name: name, Files: files, Config: v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=busybox"}}}
}

// Program makes an image with one static binary as /testprog.
func Program(name string, data []byte) Image {
	return Image{Name: name, Files: append([]File{{Path: "testprog", Mode: 0o755, Data: data}}, accounts...),
		Config: v1.Config{Entrypoint: []string{"/testprog"}, Env: []string{"PATH=/", "FROM_IMAGE=testprog"}}}
}
