package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/vmm"
)

// TestTemplateIsForSandboxedOnly: what would be a template for a sandbox without protection is none for any other.
func TestTemplateIsForSandboxedOnly(t *testing.T) {
	dir := t.TempDir()
	vm := vmm.Config{
		Name: "vm", Dir: filepath.Join(dir, "vm"), Program: filepath.Join(dir, "qemu"), Kernel: filepath.Join(dir, "kernel"),
		Cmdline: sandboxedWord, VCPUs: 1, MemoryMiB: 256, Accel: vmm.AccelTCG, Vsock: true,
	}
	for _, f := range []string{vm.Program, vm.Kernel} {
		if err := os.WriteFile(f, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		tee, kind, template, accel, self string
		want                             bool
	}{
		{"none", "qemu", "on", "tcg", "/shim", true},
		{"none", "qemu", "on", "kvm", "/shim", true},
		{"none", "qemu", "auto", "tcg", "/shim", true},
		{"none", "qemu", "auto", "kvm", "/shim", false},
		{"none", "qemu", "off", "tcg", "/shim", false},
		{"none", "qemu", "on", "tcg", "", false},
		{"none", "cloud-hypervisor", "on", "kvm", "/shim", false},
		{"tpm", "qemu", "on", "tcg", "/shim", false},
		{"snp", "qemu", "on", "kvm", "/shim", false},
		{"tdx", "qemu", "auto", "tcg", "/shim", false},
	} {
		config := runtimeconfig.Default()
		config.Sandbox.TEE, config.VMM.Kind, config.Sandbox.Template = c.tee, c.kind, c.template
		s := &Sandbox{runtime: &config, tee: c.tee, cfg: Config{Self: c.self}}
		cfg := vm
		cfg.Accel = c.accel
		got, err := s.planTemplate(cfg)
		if err != nil || (got.key != "") != c.want {
			t.Errorf("%+v: key %q, %v", c, got.key, err)
		}
		if c.want && got.vm.Vsock {
			t.Errorf("%+v: with vsock", c)
		}
		// Whatever the configuration says: what protects the VM decides.
		config.Sandbox.TEE = "none"
		if got, err := s.planTemplate(cfg); c.tee != "none" && (err != nil || got.key != "") {
			t.Errorf("%+v: key %q, %v", c, got.key, err)
		}
	}
}
