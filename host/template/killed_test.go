package template

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
)

// TestMakerKilled kills what makes a template while its VM runs: the VM goes with it, nothing counts as failed, and the next maker removes what
// was left.
func TestMakerKilled(t *testing.T) {
	dir := t.TempDir()
	number := filepath.Join(dir, "pid")
	vm := vmm.Config{
		Name: "vm", Dir: filepath.Join(dir, "vm"), Program: filepath.Join(dir, "qemu"), Kernel: filepath.Join(dir, "kernel"),
		Cmdline: "cloister.sandboxed", VCPUs: 1, MemoryMiB: 128, Accel: vmm.AccelTCG,
	}
	script := "#!/bin/sh\necho $$ > " + number + ".new && mv " + number + ".new " + number + "\nexec sleep 1000\n"
	if err := errors.Join(os.WriteFile(vm.Program, []byte(script), 0o755), os.WriteFile(vm.Kernel, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	key, err := qemu.TemplateKey(vm)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := New(filepath.Join(dir, "templates"))
	ended, err := s.Begin(self, key, vm)
	if err != nil {
		t.Fatal(err)
	}
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	over := time.After(time.Minute)
	until := func(what string, there func() bool) {
		t.Helper()
		for !there() {
			select {
			case <-look.C:
			case <-over:
				t.Fatalf("not seen: %s", what)
			}
		}
	}
	machine := ""
	until("the virtual machine", func() bool {
		text, err := os.ReadFile(number)
		machine = strings.TrimSpace(string(text))
		return err == nil
	})
	field := func(name string) string {
		text, _ := os.ReadFile("/proc/" + machine + "/status")
		_, rest, _ := strings.Cut(string(text), "\n"+name+":\t")
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	maker, err := strconv.Atoi(field("PPid"))
	if text, _ := os.ReadFile("/proc/" + field("PPid") + "/cmdline"); err != nil || !bytes.Contains(text, []byte(makeCommand)) {
		t.Fatalf("its parent is %d, %q: %v", maker, text, err)
	}
	if err := syscall.Kill(maker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ended
	until("the end of the virtual machine", func() bool {
		state := field("State")
		return state == "" || strings.HasPrefix(state, "Z")
	})
	left := filepath.Join(s.root, newPrefix+key)
	if _, err := os.Stat(left); err != nil || s.failed(key) || s.Find(key) != "" {
		t.Errorf("failed: %v, found: %q; %v", s.failed(key), s.Find(key), err)
	}
	if err := s.Make(t.Context(), name(1), write); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}
