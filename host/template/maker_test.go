package template

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
)

// TestMain lets this program be the maker, as the shim is.
func TestMain(m *testing.M) {
	if status, ok := Command(os.Args[1:]); ok {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func TestCommand(t *testing.T) {
	for _, args := range [][]string{nil, {"start"}, {makeCommand, "x"}, {"-id", makeCommand}} {
		if status, ok := Command(args); ok || status != 0 {
			t.Errorf("%q is taken for one of ours", args)
		}
	}
	if status, ok := Command([]string{qemu.CopyMemoryCommand, "no number"}); !ok || status == 0 {
		t.Errorf("a bad sum: %v %d", ok, status)
	}
	for _, text := range []string{"", "{", "[]"} {
		if err := makeOrdered(strings.NewReader(text)); err == nil {
			t.Errorf("%q is taken for an order", text)
		}
	}
}

// TestBegin: a monitor that does not start leaves a mark with the reason, no template, and is not tried again.
func TestBegin(t *testing.T) {
	dir := t.TempDir()
	vm := vmm.Config{
		Name: "vm", Dir: filepath.Join(dir, "vm"), Program: filepath.Join(dir, "qemu"), Kernel: filepath.Join(dir, "kernel"),
		Cmdline: "cloister.sandboxed", VCPUs: 1, MemoryMiB: 128, Accel: vmm.AccelTCG,
	}
	if err := os.WriteFile(vm.Program, []byte("#!/bin/sh\necho bad luck >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vm.Kernel, nil, 0o600); err != nil {
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
	begin := func(key string) {
		t.Helper()
		done, err := s.Begin(self, key, vm)
		if err != nil {
			t.Fatal(err)
		}
		<-done
	}
	begin(key)
	mark := filepath.Join(s.root, key+failSuffix)
	text, err := os.ReadFile(mark)
	if err != nil || !strings.Contains(string(text), "bad luck") || s.Find(key) != "" {
		t.Fatalf("%q, %v", text, err)
	}
	if err := os.WriteFile(mark, []byte("as before"), 0o600); err != nil {
		t.Fatal(err)
	}
	begin(key)
	if text, err := os.ReadFile(mark); err != nil || string(text) != "as before" {
		t.Errorf("tried again: %q, %v", text, err)
	}
	// A machine that has changed since its key was made.
	begin(name(7))
	if text, err := os.ReadFile(filepath.Join(s.root, name(7)+failSuffix)); err != nil || !strings.Contains(string(text), "have changed") {
		t.Errorf("%q, %v", text, err)
	}
}

func TestEnoughMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meminfo")
	for text, want := range map[string]string{
		"MemTotal: 9 kB\nMemAvailable:  2097152 kB\n": "", "MemAvailable: 1048576 kB\n": "1024 MiB of memory left", "MemTotal: 9 kB\n": "does not say", "MemAvailable: x kB\n": "invalid",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := enoughMemory(file, 1024); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
