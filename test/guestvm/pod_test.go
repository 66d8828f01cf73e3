package guestvm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/guest/mux"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/initdata"
)

// startWithTPM boots the image as a confidential guest: with a software TPM, a network card, and initdata unless it is nil.
func startWithTPM(t *testing.T, data []byte, words string) *machine {
	t.Helper()
	dir := t.TempDir()
	tpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--ctrl", "type=unixio,path="+dir+"/tpm", "--flags", "startup-clear", "--terminate")
	if err := tpm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tpm.Process.Kill(); _ = tpm.Wait() })
	waitFile(t, dir+"/tpm")
	args := []string{
		"-chardev", "socket,id=tpm,path=" + dir + "/tpm", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,romfile=",
	}
	if data != nil {
		args = append(args, initdataDisk(t, data)...)
	}
	return start(t, image(t), words, args...)
}

// initdataDisk are the arguments for a disk with initdata.
func initdataDisk(t *testing.T, data []byte) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "initdata")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=none,id=initdata,format=raw,readonly=on,file=" + file, "-device", "virtio-blk-pci,drive=initdata"}
}

// allowAll is initdata with a policy that allows every request of the protocol except those named.
func allowAll(t *testing.T, except ...string) []byte {
	t.Helper()
	allowed := map[string]bool{}
	methods := agent.File_wire_agent_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		name := string(methods.Get(i).Input().Name())
		allowed[name] = !slices.Contains(except, name)
	}
	var policy strings.Builder
	policy.WriteString("package agent_policy\n")
	for name, yes := range allowed {
		fmt.Fprintf(&policy, "default %s := %t\n", name, yes)
	}
	return document(t, policy.String())
}

// document is a device of initdata with a policy.
func document(t *testing.T, policy string) []byte {
	t.Helper()
	doc := initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{"policy.rego": policy}}
	text, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return initdata.EncodeDevice(text)
}

func podContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// send copies a file of this machine into the guest in pieces.
func (v *machine) send(ctx context.Context, file, to string) {
	v.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		v.t.Fatal(err)
	}
	const piece = 1 << 20
	for off := 0; off < len(data); off += piece {
		part := data[off:min(off+piece, len(data))]
		_, err := v.agent.CopyFile(ctx, &agent.CopyFileRequest{Path: to, FileSize: int64(len(data)), FileMode: 0o100755, DirMode: 0o40755, Offset: int64(off), Data: part})
		if err != nil {
			v.t.Fatal(err)
		}
	}
}

// probeContainer makes a specification that runs the probe.
func probeContainer(id string, tty bool, args ...string) *agent.CreateContainerRequest {
	return &agent.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		OCI: &agent.Spec{
			Version: "1.1.0",
			Process: probeProcess(tty, args...),
			Root:    &agent.Root{Path: shared + "root"},
			Mounts: []*agent.Mount{
				{Destination: "/proc", Source: "proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Source: "tmpfs", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}},
				{Destination: "/dev/pts", Source: "devpts", Type: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
				{Destination: "/sys", Source: "sysfs", Type: "sysfs", Options: []string{"ro", "nosuid"}},
				{Destination: "/sys/fs/cgroup", Source: "cgroup", Type: "cgroup", Options: []string{"ro"}},
				{Destination: "/dev/shm", Source: "/run/kata-containers/sandbox/shm", Type: "bind", Options: []string{"rbind"}},
			},
			Linux: &agent.Linux{
				Resources:  &agent.LinuxResources{Memory: &agent.LinuxMemory{Limit: 64 << 20}, CPU: &agent.LinuxCPU{Shares: 512}},
				Namespaces: []*agent.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
			},
		},
	}
}

func probeProcess(tty bool, args ...string) *agent.Process {
	caps := []string{"CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_MKNOD", "CAP_DAC_OVERRIDE"}
	return &agent.Process{
		Terminal: tty, Args: append([]string{"/probe"}, args...), Cwd: "/", Env: []string{"PATH=/", "COLOUR=green"}, User: &agent.User{},
		Capabilities: &agent.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}

func (v *machine) wait(ctx context.Context, container, exec string) int32 {
	v.t.Helper()
	r, err := v.agent.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: container, ExecId: exec})
	if err != nil {
		v.t.Fatalf("waiting for %s/%s: %v", container, exec, err)
	}
	return r.GetStatus()
}

func TestConfidential(t *testing.T) {
	v := startWithTPM(t, allowAll(t, "SetPolicyRequest", "AddSwapPathRequest"), "cloister.initdata=required")
	ctx := podContext(t)
	v.connect()
	h, err := v.health.Check(ctx, &agent.CheckRequest{})
	if err != nil || h.GetStatus() != agent.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", h, err)
	}
	v.must(v.agent.UpdateInterface(ctx, &agent.UpdateInterfaceRequest{Interface: &agent.Interface{
		Device: "eth0", Name: "eth0", HwAddr: "52:54:00:12:34:56", Mtu: 1500,
		IPAddresses: []*agent.IPAddress{{Address: "10.0.2.15", Mask: "24"}},
	}}))
	routes, err := v.agent.UpdateRoutes(ctx, &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: []*agent.Route{{Gateway: "10.0.2.2", Device: "eth0"}}}})
	if err != nil || len(routes.GetRoutes()) < 2 {
		t.Fatalf("routes: %v, %v", routes, err)
	}
	v.must(v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{
		Hostname: "podname", SandboxId: "sandbox1", Dns: []string{"nameserver 10.0.2.3"},
		Storages: shm(),
	}))
	program := filepath.Join(t.TempDir(), "probe")
	goBuild(t, "./probe", program)
	v.send(ctx, program, shared+"root/probe")
	for _, dir := range []string{"proc", "dev", "sys", "tmp"} {
		v.must(v.agent.CopyFile(ctx, &agent.CopyFileRequest{Path: shared + "root/" + dir, FileMode: 0o40755, DirMode: 0o40755}))
	}
	t.Run("sandbox container, shared processes, pause", func(t *testing.T) { v.testSandboxContainer(ctx, t) })
	t.Run("output, environment and exit code", func(t *testing.T) {
		v.launch(ctx, probeContainer("c1", false, "who", "env=COLOUR", "complain=bad", "ls=/dev", "open=/dev/null", "cat=/proc/self/cgroup", "write=/dev/shm/x", "exit=7"))
		out := v.output(ctx, "c1")
		errOut := v.read(ctx, "c1", "c1", v.agent.ReadStderr)
		if code := v.wait(ctx, "c1", ""); code != 7 {
			t.Errorf("exit code %d", code)
		}
		if !strings.HasPrefix(out, "1 0 podname\ngreen\n") || errOut != "bad\n" || strings.Contains(out, "tpm") || !strings.HasSuffix(out, "<nil>\n") {
			t.Errorf("output %q, %q", out, errOut)
		}
		v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "c1"}))
		if _, err := v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "c1"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("removing twice: %v", err)
		}
	})
	t.Run("exec, stdin, signals, stats", func(t *testing.T) { v.testLong(ctx, t) })
	t.Run("terminal", func(t *testing.T) {
		v.launch(ctx, probeContainer("tty", true, "line", "exit=0"))
		v.must(v.agent.TtyWinResize(ctx, &agent.TtyWinResizeRequest{ContainerId: "tty", Row: 20, Column: 70}))
		v.must(v.agent.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: "tty", Data: []byte("hello\n")}))
		if out := v.output(ctx, "tty"); !strings.Contains(out, "got hello\r\n") {
			t.Errorf("output %q", out)
		}
		v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "tty"}))
	})
	t.Run("logs and memory", func(t *testing.T) {
		logs := bufio.NewScanner(v.dial(mux.PortLogs))
		if !logs.Scan() || !json.Valid(logs.Bytes()) {
			t.Errorf("log line %q", logs.Text())
		}
		m, err := v.agent.GetMetrics(ctx, &agent.GetMetricsRequest{})
		if err != nil || !strings.Contains(m.GetMetrics(), "kata_guest_meminfo") {
			t.Errorf("metrics %v, %v", m, err)
		}
		t.Log(m.GetMetrics())
	})
	t.Run("out of memory", func(t *testing.T) {
		v.launch(ctx, probeContainer("oom", false, "eat"))
		if code := v.wait(ctx, "oom", ""); code != 137 {
			t.Errorf("exit code %d", code)
		}
		ev, err := v.agent.GetOOMEvent(ctx, &agent.GetOOMEventRequest{})
		if err != nil || ev.GetContainerId() != "oom" {
			t.Errorf("event %v, %v", ev, err)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		if _, err := v.agent.SetPolicy(ctx, &agent.SetPolicyRequest{Policy: "package agent_policy"}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("policy replaced: %v", err)
		}
		if _, err := v.agent.AddSwapPath(ctx, &agent.AddSwapPathRequest{Path: "/dev/vda"}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "is blocked by policy") {
			t.Errorf("swap: %v", err)
		}
		bad := probeContainer("bad", false, "who")
		bad.OCI.Mounts = append(bad.OCI.Mounts, &agent.Mount{Destination: "/x", Source: "/run/cloister", Type: "bind"})
		if _, err := v.agent.CreateContainer(ctx, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("foreign mount: %v", err)
		}
	})
	v.must(v.agent.DestroySandbox(ctx, &agent.DestroySandboxRequest{}))
	v.waitExit()
	if strings.Contains(v.console.String(), "fatal") {
		t.Error("the guest did not end cleanly")
	}
}

// shm is the memory that the containers of a pod share.
func shm() []*agent.Storage {
	return []*agent.Storage{{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=16777216"},
		MountPoint: "/run/kata-containers/sandbox/shm"}}
}

func (v *machine) testSandboxContainer(ctx context.Context, t *testing.T) {
	pause := probeContainer("sandbox1", false, "ignored")
	pause.OCI.Root.Path = "/run/kata-containers/sandbox1/rootfs"
	pause.Storages = []*agent.Storage{{
		Driver: "image_guest_pull", Source: "pause", Fstype: "overlay", MountPoint: "/run/kata-containers/sandbox1/rootfs",
		DriverOptions: []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`},
	}}
	v.launch(ctx, pause)
	if _, err := v.agent.CreateContainer(ctx, pause); status.Code(err) != codes.AlreadyExists {
		t.Errorf("creating twice: %v", err)
	}
	v.launch(ctx, probeContainer("paused", false, "line"))
	v.must(v.agent.PauseContainer(ctx, &agent.PauseContainerRequest{ContainerId: "paused"}))
	if _, err := v.agent.PauseContainer(ctx, &agent.PauseContainerRequest{ContainerId: "paused"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("pausing twice: %v", err)
	}
	v.must(v.agent.ResumeContainer(ctx, &agent.ResumeContainerRequest{ContainerId: "paused"}))
	v.must(v.agent.ExecProcess(ctx, &agent.ExecProcessRequest{ContainerId: "paused", ExecId: "t", Process: probeProcess(true, "say=tty", "exit=0")}))
	if out := v.read(ctx, "paused", "t", v.agent.ReadStdout); out != "tty\r\n" {
		t.Errorf("output %q", out)
	}
	if _, err := v.agent.ExecProcess(ctx, &agent.ExecProcessRequest{ContainerId: "paused", ExecId: "x", Process: &agent.Process{Args: []string{"/missing"}, Cwd: "/"}}); err == nil {
		t.Error("a missing program was executed")
	}
	v.must(v.agent.PauseContainer(ctx, &agent.PauseContainerRequest{ContainerId: "paused"}))
	v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "paused"}))

	// A shared process namespace shows the pause program as the first process.
	sharing := probeContainer("sharing", false, "who", "exit=0")
	sharing.SandboxPidns = true
	v.launch(ctx, sharing)
	if out := v.output(ctx, "sharing"); strings.HasPrefix(out, "1 ") || !strings.HasSuffix(out, " 0 podname\n") {
		t.Errorf("output %q", out)
	}
	v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "sharing"}))
	v.must(v.agent.SignalProcess(ctx, &agent.SignalProcessRequest{ContainerId: "sandbox1", Signal: 15}))
	if code := v.wait(ctx, "sandbox1", ""); code != 0 {
		t.Errorf("pause ended with %d", code)
	}
	v.must(v.agent.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: "sandbox1"}))
}

func (v *machine) testLong(ctx context.Context, t *testing.T) {
	v.launch(ctx, probeContainer("long", false, "term"))
	if _, err := v.agent.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "long", Len: 100}); err != nil {
		t.Fatal(err)
	}
	v.must(v.agent.ExecProcess(ctx, &agent.ExecProcessRequest{ContainerId: "long", ExecId: "e1", Process: probeProcess(false, "echo", "exit=3")}))
	v.must(v.agent.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: "long", ExecId: "e1", Data: []byte("through")}))
	v.must(v.agent.CloseStdin(ctx, &agent.CloseStdinRequest{ContainerId: "long", ExecId: "e1"}))
	if code := v.wait(ctx, "long", "e1"); code != 3 {
		t.Errorf("exit code %d", code)
	}
	// What was written before the end is still there after it.
	if out := v.read(ctx, "long", "e1", v.agent.ReadStdout); out != "through" {
		t.Errorf("output %q", out)
	}
	st, err := v.agent.StatsContainer(ctx, &agent.StatsContainerRequest{ContainerId: "long"})
	if err != nil || st.GetCgroupStats().GetMemoryStats().GetUsage().GetUsage() == 0 || st.GetCgroupStats().GetPidsStats().GetCurrent() == 0 {
		t.Errorf("stats %v, %v", st, err)
	}
	v.must(v.agent.UpdateContainer(ctx, &agent.UpdateContainerRequest{ContainerId: "long", Resources: &agent.LinuxResources{Memory: &agent.LinuxMemory{Limit: 96 << 20}}}))
	v.must(v.agent.SignalProcess(ctx, &agent.SignalProcessRequest{ContainerId: "long", Signal: 15}))
	if code := v.wait(ctx, "long", ""); code != 9 {
		t.Errorf("exit code %d after a handled SIGTERM", code)
	}
	v.launch(ctx, probeContainer("deaf", false, "sleep"))
	v.must(v.agent.SignalProcess(ctx, &agent.SignalProcessRequest{ContainerId: "deaf", ExecId: "deaf", Signal: 9}))
	if code := v.wait(ctx, "deaf", ""); code != 137 {
		t.Errorf("exit code %d after SIGKILL", code)
	}
}

func TestWithoutInitdataStops(t *testing.T) {
	v := startWithTPM(t, nil, "cloister.initdata=required agent.hotplug_timeout=2")
	v.waitExit()
	if out := v.console.String(); !strings.Contains(out, "cloister-guest: fatal: waiting for a block device with initdata") {
		t.Errorf("console does not say why")
	}
}

func TestWithoutAnnouncedInitdata(t *testing.T) {
	v := startWithTPM(t, nil, "cloister.initdata=none")
	ctx := podContext(t)
	v.connect()
	v.must(v.agent.GetGuestDetails(ctx, &agent.GuestDetailsRequest{}))
	if _, err := v.agent.CreateSandbox(ctx, &agent.CreateSandboxRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("sandbox: %v", err)
	}
	// The end of the channel is the end of the guest.
	v.session.Close()
	v.waitExit()
}
