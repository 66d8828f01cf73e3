package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
)

// TestStartFaults: what is missing or broken outside is named, and nothing is left.
func TestStartFaults(t *testing.T) {
	ctx := testContext(t)
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	small := func(c *vmm.Config) { c.FirmwareCode, c.FirmwareVars, c.TPM, c.Kernel = "", "", nil, kernel }
	tests := []struct {
		name string
		edit func(*vmm.Config)
		want string
	}{
		{"kernel that is none", small, "kernel"},
		{"missing initrd", func(c *vmm.Config) { small(c); c.Initrd = "/nonexistent/initrd" }, "/nonexistent/initrd"},
		{"microvm without kernel file", func(c *vmm.Config) {
			small(c)
			c.Machine, c.Kernel = vmm.MachineMicroVM, "/nonexistent/vmlinuz"
		}, "/nonexistent/vmlinuz"},
		{"missing namespace", func(c *vmm.Config) { c.NetNS = "/nonexistent/netns" }, "/nonexistent/netns"},
		{"missing server of the share", func(c *vmm.Config) { c.Share = &vmm.Share{Tag: "t", Socket: "/nonexistent/fs.sock"} }, "/nonexistent/fs.sock"},
		{"program that is no QEMU", func(c *vmm.Config) { c.Program = "/bin/true" }, "without giving a reason"},
		{"program that says why", func(c *vmm.Config) { c.Program = script(t, "echo no such luck >&2; exit 3") }, "no such luck"},
		{"log that cannot be", func(c *vmm.Config) { c.ConsoleLog = "/nonexistent/log" }, "console log"},
		{"disk that is a directory", func(c *vmm.Config) { c.ExtraDisks = []vmm.Disk{{Path: "/tmp", Serial: "d"}} }, "neither a file nor a block device"},
	}
	if _, err := os.Stat(vhostVsock); err != nil {
		tests = append(tests, struct {
			name string
			edit func(*vmm.Config)
			want string
		}{"no vsock", func(c *vmm.Config) { c.Vsock = true }, vhostVsock})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.TPM = nil
			tt.edit(&cfg)
			vm, err := Start(ctx, cfg)
			if err == nil {
				kill(t, vm)
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("directory is still there: %v", err)
			}
			if pids := children(t); len(pids) > 0 {
				t.Errorf("processes are left: %v", pids)
			}
		})
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// children are the processes of ours that have not been waited for.
func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range lists {
		b, _ := os.ReadFile(l) // a thread may have ended
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// TestFullDisk: no room for the VM's files is an error that says so, and leaves nothing.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		needs.Missing(t, "the right to mount: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	cfg := testConfig(t)
	cfg.Dir = filepath.Join(dir, "vm")
	vm, err := Start(testContext(t), cfg)
	if err == nil {
		kill(t, vm)
		t.Fatal("it started")
	}
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "firmware variables") {
		t.Errorf("got %v", err)
	}
	if es, _ := os.ReadDir(dir); len(es) > 0 {
		t.Errorf("left: %v", es)
	}
}

func TestNetNS(t *testing.T) {
	type place struct {
		path string
		err  error
	}
	made, end := make(chan place), make(chan struct{})
	defer close(end)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- place{"/proc/" + strconv.Itoa(os.Getpid()) + "/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net", err}
		<-end
	}()
	there := <-made
	if there.err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", there.err)
	}
	vm := plugVM(t, func(c *vmm.Config) { c.NetNS, c.UserNetwork = there.path, true })
	want, err := os.Readlink(there.path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink("/proc/" + strconv.Itoa(vm.PID()) + "/ns/net"); err != nil || got != want {
		t.Errorf("QEMU is in %q (%v), expected %q", got, err, want)
	}
}

// TestSharedMemory: the server of a shared directory is connected, and hears from QEMU.
func TestSharedMemory(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "fs.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan int, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		n, _ := conn.Read(make([]byte, 64))
		heard <- n
	}()
	cfg := testConfig(t)
	cfg.TPM, cfg.Share = nil, &vmm.Share{Tag: "kataShared", Socket: l.Addr().String()}
	// The server hangs up after the first message, so that this start fails.
	vm, err := Start(testContext(t), cfg)
	if err == nil {
		kill(t, vm)
	}
	if n := <-heard; n < 12 {
		t.Errorf("the first message has %d bytes", n)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
}
