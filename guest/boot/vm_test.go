package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/guest/mux"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/initdata"
)

// imageEnv names a directory with vmlinuz, runc and modules/<release>/..., what the guest image builder unpacks.
const imageEnv = "CLOISTER_TEST_GUEST_PARTS"

// vm is the guest in a machine with a software TPM, emulated so that it works everywhere.
type vm struct {
	t       *testing.T
	dir     string
	console *syncBuffer
	exited  chan error
	session *yamux.Session
	agent   agent.AgentServiceService
	health  agent.HealthService
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// vmParts skips the test where the facilities are missing.
func vmParts(t *testing.T) string {
	t.Helper()
	parts := os.Getenv(imageEnv)
	if parts == "" {
		t.Skip("set " + imageEnv + " to a directory with vmlinuz, runc and modules to boot the guest in a virtual machine")
	}
	for _, tool := range []string{"qemu-system-x86_64", "swtpm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	return parts
}

func goBuild(t *testing.T, pkg, out string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, text)
	}
}

// archive is an initial RAM file system under construction.
type archive struct {
	bytes.Buffer
	ino int
}

func (a *archive) add(name string, mode, major, minor uint32, data []byte) {
	a.ino++
	fmt.Fprintf(a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func buildInitrd(t *testing.T, parts, guest, out string) {
	t.Helper()
	read := func(p string) []byte {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var a archive
	for _, d := range []string{"dev", "etc", "etc/cloister", "usr", "usr/bin", "lib", "lib/modules"} {
		a.add(d, 0o40755, 0, 0, nil)
	}
	a.add("dev/console", 0o20600, 5, 1, nil)
	a.add("dev/null", 0o20666, 1, 3, nil)
	a.add("init", 0o100755, 0, 0, read(guest))
	a.add("usr/bin/runc", 0o100755, 0, 0, read(filepath.Join(parts, "runc")))
	var list []string
	for _, name := range []string{"overlay", "failover", "net_failover", "virtio_net", "virtio_blk", "virtio-rng"} {
		found, _ := filepath.Glob(filepath.Join(parts, "modules/*/kernel/*/"+name+".ko"))
		for _, pattern := range []string{"modules/*/kernel/*/*/", "modules/*/kernel/*/*/*/", "modules/*/kernel/*/*/*/*/"} {
			more, _ := filepath.Glob(filepath.Join(parts, pattern+name+".ko"))
			found = append(found, more...)
		}
		if len(found) == 0 {
			continue // built in
		}
		file := "lib/modules/" + name + ".ko"
		a.add(file, 0o100644, 0, 0, read(found[0]))
		list = append(list, "/"+file)
	}
	a.add("etc/cloister/modules", 0o100644, 0, 0, []byte(strings.Join(list, "\n")+"\n"))
	a.add("TRAILER!!!", 0, 0, 0, nil)
	if err := os.WriteFile(out, a.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// boot starts a machine with the given initdata (none when nil) and command line words.
func startVM(t *testing.T, parts string, data []byte, words ...string) *vm {
	t.Helper()
	dir := t.TempDir()
	v := &vm{t: t, dir: dir, console: &syncBuffer{}, exited: make(chan error, 1)}
	guest, initrd := filepath.Join(dir, "guest"), filepath.Join(dir, "initrd")
	goBuild(t, "github.com/cloister/cloister/cmd/cloister-guest", guest)
	buildInitrd(t, parts, guest, initrd)
	tpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--ctrl", "type=unixio,path="+dir+"/tpm", "--flags", "startup-clear", "--terminate")
	if err := tpm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tpm.Process.Kill(); _ = tpm.Wait() })
	waitFile(t, dir+"/tpm")
	args := []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off,cx16=off", "-m", "640", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-kernel", filepath.Join(parts, "vmlinuz"), "-initrd", initrd,
		"-append", strings.Join(append([]string{"console=ttyS0 quiet panic=-1"}, words...), " "),
		"-chardev", "socket,id=agent,path=" + dir + "/agent,server=on,wait=off", "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=agent,name=" + mux.PortName,
		"-chardev", "socket,id=tpm,path=" + dir + "/tpm", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,romfile=", "-device", "virtio-rng-pci",
	}
	if data != nil {
		if err := os.WriteFile(dir+"/initdata", data, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-drive", "if=none,id=d0,format=raw,readonly=on,file="+dir+"/initdata", "-device", "virtio-blk-pci,drive=d0")
	}
	qemu := exec.Command("qemu-system-x86_64", args...)
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
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s did not appear", path)
}

// dial opens a stream to a port of the guest.
func (v *vm) dial(port uint32) net.Conn {
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

func (v *vm) connect() {
	c := ttrpc.NewClient(v.dial(mux.PortAgent))
	v.t.Cleanup(func() { c.Close() })
	v.agent, v.health = agent.NewAgentServiceClient(c), agent.NewHealthClient(c)
}

func (v *vm) waitExit() {
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

func vmContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// allowAll writes initdata with a policy that allows every request except those named.
func allowAll(t *testing.T, except ...string) []byte {
	t.Helper()
	var policy strings.Builder
	policy.WriteString("package agent_policy\n")
	for line := range strings.Lines(defaultPolicy) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "default" {
			fmt.Fprintf(&policy, "default %s := %t\n", f[1], !slices.Contains(except, f[1]))
		}
	}
	doc := initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{partPolicy: policy.String()}}
	text, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return initdata.EncodeDevice(text)
}
