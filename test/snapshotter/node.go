package snapshotter

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/internal/testregistry"
	"github.com/cloister/cloister/test/containerd"
)

// name is the snapshotter's in containerd's configuration, registry the one of image names.
const (
	name         = "cloister"
	registryHost = "registry.cloister.test"
	timeout      = 2 * time.Minute
)

// node is a private containerd with our snapshotter and a registry.
type node struct {
	*containerd.Daemon
	registry *testregistry.Registry
	runtime  cri.RuntimeServiceClient
	images   cri.ImageServiceClient

	t       testing.TB
	handler string // of pods on our layers
	dir     string
	binary  string
	mu      sync.Mutex
	log     bytes.Buffer
	cmd     *exec.Cmd
	done    chan struct{}
}

// configure gives containerd what an installation of the snapshotter adds. In 1.6 all pods use it; in later versions those of a handler, which is
// made one of runc here: the command prints it for virtual machines.
func (n *node) configure(opts *containerd.Options) {
	if containerd.Series(opts.Version) == containerd.V16 {
		opts.Main = fmt.Sprintf("[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = %q\n", name, n.path("s.sock"))
		opts.Snapshotter = name
		return
	}
	n.handler = "blocks"
	args := []string{"run", "./cmd/cloister", "config", "containerd", "--for", opts.Version, "--snapshotter=" + n.path("s.sock"), "--handler", n.handler + "="}
	if containerd.OneConfigVersion(opts.Version) {
		args = append(args, "--config-version", "2")
	}
	cmd := exec.CommandContext(n.t.Context(), "go", args...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("cloister config containerd: %v", err)
	}
	const transfer = "[plugins.'io.containerd.transfer.v1.local']\n"
	opts.DropIn = strings.NewReplacer("io.containerd.cloister.v2", "io.containerd.runc.v2", transfer, transfer+"max_concurrent_unpacks = 4\n").Replace(string(out))
}

// start starts a node; everything goes with the test, and what is left behind is an error.
func start(t testing.TB, version string) *node {
	t.Helper()
	containerd.Need(t)
	dir, err := os.MkdirTemp("", "snp")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, binary: filepath.Join(dir, "cloister-snapshotter")}
	t.Cleanup(func() {
		n.stop(syscall.SIGTERM)
		for _, at := range mountsIn(dir) {
			t.Errorf("left behind: mount %s", at)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
		if t.Failed() {
			t.Logf("the snapshotter's log:\n%s", n.logs())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.binary, containerd.GoProgram(t, root, "./cmd/cloister-snapshotter"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.serve()
	if n.registry, err = testregistry.Start(testregistry.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.registry.Close() })
	opts := containerd.Options{Version: version, Mirrors: map[string]string{registryHost: "http://" + n.registry.Addr()}}
	n.configure(&opts)
	n.Daemon = containerd.Start(t, opts)
	if err := os.Symlink(n.Address, n.path("c.sock")); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+n.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.runtime, n.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	n.until("CRI is up", func(ctx context.Context) bool {
		_, err := n.runtime.Status(ctx, &cri.StatusRequest{})
		return err == nil
	})
	return n
}

func (n *node) path(file string) string { return filepath.Join(n.dir, file) }

// call is a context for one request.
func (n *node) call() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(n.t.Context()), timeout)
	n.t.Cleanup(cancel)
	return ctx
}

// until polls, as CRI of 1.6 has no events to wait for.
func (n *node) until(what string, done func(context.Context) bool) {
	n.t.Helper()
	ctx := n.call()
	for !done(ctx) {
		if ctx.Err() != nil {
			n.t.Fatalf("after %s: not yet %s", timeout, what)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// serve starts the snapshotter and returns when it serves.
func (n *node) serve() {
	n.t.Helper()
	cmd := exec.Command(n.binary, "serve", "--root", n.path("root"), "--socket", n.path("s.sock"), "--containerd", n.path("c.sock"), "--debug")
	r, err := cmd.StderrPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.cmd, n.done = cmd, make(chan struct{})
	up := make(chan struct{})
	go func() {
		defer close(n.done)
		s := bufio.NewScanner(r)
		for said := false; s.Scan(); {
			n.mu.Lock()
			n.log.WriteString(s.Text() + "\n")
			n.mu.Unlock()
			if !said && strings.Contains(s.Text(), "msg=serving") {
				said = true
				close(up)
			}
		}
		_ = cmd.Wait()
	}()
	select {
	case <-up:
	case <-n.done:
		n.t.Fatalf("the snapshotter ended while starting:\n%s", n.logs())
	case <-time.After(timeout):
		n.t.Fatalf("the snapshotter did not come up:\n%s", n.logs())
	}
}

func (n *node) stop(s syscall.Signal) {
	_ = n.cmd.Process.Signal(s) // it may have ended
	select {
	case <-n.done:
	case <-time.After(timeout):
		n.t.Errorf("the snapshotter did not end by %s", s)
		_ = n.cmd.Process.Kill()
		<-n.done
	}
}

func (n *node) logs() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// pull pulls an image as the kubelet does for a pod of a handler.
func (n *node) pull(image, handler string) error {
	_, err := n.images.PullImage(n.call(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image, RuntimeHandler: handler},
		SandboxConfig: &cri.PodSandboxConfig{Annotations: map[string]string{"io.containerd.cri.runtime-handler": handler}}})
	return err
}

func (n *node) removeImage(image string) {
	n.t.Helper()
	if _, err := n.images.RemoveImage(n.call(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}}); err != nil {
		n.t.Error(err)
	}
}

// pod runs a program in a pod of one container and returns what it printed. While it runs, during is called.
func (n *node) pod(image, handler, script string, during func()) string {
	n.t.Helper()
	fail := func(what string, err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatalf("%s: %v", what, err)
		}
	}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "0", Namespace: "test"}, LogDirectory: n.path("logs"),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
			Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}}},
	}
	fail("making the logs' directory", os.MkdirAll(n.path("logs"), 0o755))
	p, err := n.runtime.RunPodSandbox(n.call(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	fail("running the sandbox", err)
	defer func() {
		_, err := n.runtime.StopPodSandbox(n.call(), &cri.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId})
		fail("stopping the sandbox", err)
		_, err = n.runtime.RemovePodSandbox(n.call(), &cri.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId})
		fail("removing the sandbox", err)
	}()
	c, err := n.runtime.CreateContainer(n.call(), &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"/bin/sh", "-c", script}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions}},
	}})
	fail("creating the container", err)
	_, err = n.runtime.StartContainer(n.call(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
	fail("starting the container", err)
	during()
	n.until("the container has ended", func(ctx context.Context) bool {
		r, err := n.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ContainerId})
		return err == nil && r.Status.State == cri.ContainerState_CONTAINER_EXITED
	})
	text, err := os.ReadFile(n.path("logs/c.log"))
	fail("reading the container's log", err)
	fail("removing the container's log", os.Remove(n.path("logs/c.log")))
	var out strings.Builder
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if words := strings.SplitN(line, " ", 4); len(words) == 4 { // time, stream, tag, text
			out.WriteString(words[3])
		}
	}
	return out.String()
}

// mountsIn are the mount points below a directory.
func mountsIn(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, line := range strings.Split(string(text), "\n") {
		if words := strings.Fields(line); len(words) > 4 && strings.HasPrefix(words[4], dir+"/") {
			found = append(found, words[4])
		}
	}
	return found
}
