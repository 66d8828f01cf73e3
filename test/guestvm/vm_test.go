// Package guestvm boots the guest image, confidential and in sandboxed mode, and does to it what a host's runtime does.
package guestvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/test/vmtest"
	"github.com/cloister/cloister/wire/agent"
)

// machine is a running guest.
type machine struct {
	t       *testing.T
	dir     string
	console *console
	exited  chan error
	session *yamux.Session
	agent   agent.AgentServiceService
	health  agent.HealthService
}

// console gathers what the guest prints.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// image builds the guest image, or finds it built.
func image(t *testing.T) string {
	t.Helper()
	vmtest.Need(t)
	res, err := guestimage.Build(t.Context(), guestimage.Options{
		CacheDir: filepath.Join(vmtest.Home(t), "cache/guest"), LockPath: "../../guest.lock", RepoDir: "../..",
	})
	if err != nil {
		t.Fatal(err)
	}
	return res.Dir
}

// start boots the image with more command line words and QEMU arguments.
func start(t *testing.T, dir, words string, args ...string) *machine {
	t.Helper()
	v := &machine{t: t, dir: t.TempDir(), console: &console{}, exited: make(chan error, 1)}
	qemu := exec.Command("qemu-system-x86_64", append([]string{
		"-machine", "q35,memory-backend=mem", "-accel", "tcg,thread=single", "-cpu", "max,la57=off,cx16=off", "-smp", "1",
		"-m", "768,slots=2,maxmem=2G", "-object", "memory-backend-memfd,id=mem,size=768M,share=on",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-monitor", "unix:" + v.dir + "/monitor,server,nowait",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd.img"), "-append", "console=ttyS0 quiet panic=-1 " + words,
		"-chardev", "socket,id=agent,path=" + v.dir + "/agent,server=on,wait=off", "-device", "virtio-serial-pci,addr=10",
		"-device", "virtserialport,chardev=agent,name=cloister.agent.0", "-device", "virtio-rng-pci,addr=11",
	}, args...)...)
	qemu.Stdout, qemu.Stderr = v.console, v.console
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		v.exited <- qemu.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = qemu.Process.Kill()
		<-done
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s", v.console)
		}
	})
	return v
}

func waitFile(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s did not appear", path)
}

// dial opens a stream to a port of the guest.
func (v *machine) dial(port uint32) net.Conn {
	v.t.Helper()
	if v.session == nil {
		waitFile(v.t, v.dir+"/agent")
		c, err := net.Dial("unix", v.dir+"/agent")
		if err != nil {
			v.t.Fatal(err)
		}
		cfg := yamux.DefaultConfig()
		cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
		cfg.StreamOpenTimeout, cfg.ConnectionWriteTimeout = 5*time.Minute, 5*time.Minute
		if v.session, err = yamux.Client(c, cfg); err != nil {
			v.t.Fatal(err)
		}
	}
	s, err := v.session.Open()
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := s.Write(binary.BigEndian.AppendUint32(nil, port)); err != nil {
		v.t.Fatal(err)
	}
	return s
}

func (v *machine) connect() {
	c := ttrpc.NewClient(v.dial(1024))
	v.t.Cleanup(func() { c.Close() })
	v.agent, v.health = agent.NewAgentServiceClient(c), agent.NewHealthClient(c)
}

// waitExit waits until the guest has switched the machine off.
func (v *machine) waitExit() {
	v.t.Helper()
	select {
	case err := <-v.exited:
		if err != nil {
			v.t.Fatalf("machine: %v", err)
		}
	case <-time.After(3 * time.Minute):
		v.t.Fatal("the machine did not switch itself off")
	}
}

// monitor gives QEMU a command and returns what it says.
func (v *machine) monitor(command string) string {
	v.t.Helper()
	c, err := net.Dial("unix", v.dir+"/monitor")
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	prompt := func() string {
		var out []byte
		for !bytes.HasSuffix(out, []byte("(qemu) ")) {
			b := make([]byte, 4096)
			n, err := c.Read(b)
			if err != nil {
				v.t.Fatalf("monitor: %v after %q", err, out)
			}
			out = append(out, b[:n]...)
		}
		return string(out)
	}
	prompt()
	if _, err := io.WriteString(c, command+"\n"); err != nil {
		v.t.Fatal(err)
	}
	out := prompt()
	if strings.Contains(out, "Error") {
		v.t.Fatalf("monitor: %s", out)
	}
	return out
}

func (v *machine) must(_ any, err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// run runs the probe in a new container and returns what it has printed.
func (v *machine) run(ctx context.Context, req *agent.CreateContainerRequest) string {
	v.t.Helper()
	v.launch(ctx, req)
	id := req.GetContainerId()
	out := v.output(ctx, id)
	r, err := v.agent.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: id, ExecId: id})
	if err != nil || r.GetStatus() != 0 {
		v.t.Errorf("%s: exit %d, %v: %s", id, r.GetStatus(), err, out)
	}
	return out
}

func (v *machine) launch(ctx context.Context, req *agent.CreateContainerRequest) {
	v.t.Helper()
	v.must(v.agent.CreateContainer(ctx, req))
	v.must(v.agent.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: req.GetContainerId()}))
}

// output is all that a container's first process prints.
func (v *machine) output(ctx context.Context, id string) string {
	v.t.Helper()
	return v.read(ctx, id, id, v.agent.ReadStdout)
}

// read reads a stream of a process to its end.
func (v *machine) read(ctx context.Context, container, exec string, read func(context.Context, *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error)) string {
	v.t.Helper()
	var out strings.Builder
	for {
		r, err := read(ctx, &agent.ReadStreamRequest{ContainerId: container, ExecId: exec, Len: 4096})
		if err != nil {
			v.t.Fatalf("reading output of %s/%s: %v", container, exec, err)
		}
		if len(r.GetData()) == 0 {
			return out.String()
		}
		out.Write(r.GetData())
	}
}

// remove removes a container.
func (v *machine) remove(ctx context.Context, id string) {
	v.t.Helper()
	v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: id}))
}

const shared = "/run/kata-containers/shared/containers/"

// probe is a container that runs the probe from a directory of the share, with as much memory as there is.
func probe(id string, args ...string) *agent.CreateContainerRequest {
	req := probeContainer(id, false, args...)
	req.OCI.Linux.Resources = nil
	return req
}

// with adds a bind mount.
func with(req *agent.CreateContainerRequest, source, destination string, options ...string) *agent.CreateContainerRequest {
	req.OCI.Mounts = append(req.OCI.Mounts, &agent.Mount{Destination: destination, Source: source, Type: "bind", Options: append([]string{"rbind"}, options...)})
	return req
}

func goBuild(t *testing.T, pkg, out string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, text)
	}
}

// disk makes an empty disk of some MiB.
func disk(t *testing.T, mib int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
