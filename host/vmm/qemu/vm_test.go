package qemu

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
)

const ovmf = "/usr/share/OVMF/"

// testConfig is a VM without a kernel: its firmware runs and finds nothing to boot.
func testConfig(t *testing.T) vmm.Config {
	t.Helper()
	needs.Programs(t, "qemu-system-x86_64", "swtpm", "swtpm_setup", "swtpm_localca")
	needs.Files(t, ovmf+"OVMF_CODE_4M.fd")
	base := t.TempDir()
	return vmm.Config{
		Name: "test", Dir: filepath.Join(base, "vm"), ConsoleLog: filepath.Join(base, "console.log"),
		FirmwareCode: ovmf + "OVMF_CODE_4M.fd", FirmwareVars: ovmf + "OVMF_VARS_4M.fd",
		VCPUs: 1, MemoryMiB: 256, Accel: vmm.AccelTCG,
		InitdataImage: bytes.Repeat([]byte("initdata"), 64),
		TPM:           &vmm.TPM{CADir: filepath.Join(base, "ca")},
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestStartAndStop(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	vm, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	qemu, tpm := vm.PID(), vm.tpm.PID()
	conn, err := vm.Dial(ctx, 1024)
	if err != nil {
		t.Fatalf("dialling a guest that is not there yet: %v", err)
	}
	conn.Close()
	now, cancel := context.WithCancel(ctx)
	cancel() // no grace: firmware does not power off
	if err := vm.Stop(now); err != nil {
		t.Fatal(err)
	}
	if err := vm.Err(); err != nil {
		t.Errorf("a requested end is reported as %v", err)
	}
	for what, pid := range map[string]int{"QEMU": qemu, "swtpm": tpm} {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s (process %d) is still there: %v", what, pid, err)
		}
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
	if _, err := os.Stat(cfg.ConsoleLog); err != nil {
		t.Errorf("the console log was not kept: %v", err)
	}
	if _, err := vm.Dial(ctx, 1024); err == nil {
		t.Error("an ended VM can be dialled")
	}
}

func TestKilledVMIsReported(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	vm, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(vm.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-vm.Exited():
	case <-ctx.Done():
		t.Fatal("the end of the VM was not noticed")
	}
	var e *vmm.ExitError
	if !errors.As(vm.Err(), &e) || !strings.Contains(e.Status, "killed") {
		t.Errorf("got %v", vm.Err())
	}
}

func TestKilledTPMIsReported(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	vm, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(vm.tpm.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-vm.Exited():
	case <-ctx.Done():
		t.Fatal("the end of the TPM was not noticed")
	}
	var e *vmm.ExitError
	if !errors.As(vm.Err(), &e) || e.Reason != "the software TPM ended with signal: killed" {
		t.Errorf("got %v", vm.Err())
	}
	if err := unix.Kill(vm.PID(), 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("QEMU is still there: %v", err)
	}
}

func TestTPMChain(t *testing.T) {
	_, ctx := testConfig(t), testContext(t)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	roots, err := TPMRoots(ctx, ca)
	if err != nil {
		t.Fatal(err)
	}
	again, err := TPMRoots(ctx, ca)
	if err != nil || again != roots {
		t.Fatalf("second call: %s, %v", again, err)
	}
	pemBytes, err := os.ReadFile(roots)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(pemBytes)
	if block == nil || len(rest) != 0 {
		t.Fatal("expected exactly one certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		t.Errorf("the root is not self-signed: %v", err)
	}
	if info, _ := os.Stat(filepath.Join(ca, caKeyFile)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the authority's key is %v", info.Mode())
	}
	tpm := filepath.Join(dir, "tpm")
	if err := os.Mkdir(tpm, 0o700); err != nil {
		t.Fatal(err)
	}
	state, err := manufactureTPM(ctx, tpm, "web-0", ca)
	if err != nil {
		t.Fatal(err)
	}
	ek := ekCertificate(t, filepath.Join(state, "tpm2-00.permall"))
	if err := ek.CheckSignatureFrom(cert); err != nil {
		t.Errorf("endorsement key certificate: %v", err)
	}
	if ek.Subject.CommonName != "web-0" {
		t.Errorf("endorsement key certificate is for %q", ek.Subject.CommonName)
	}
}

// ekCertificate finds the RSA endorsement key certificate in the TPM's stored NV memory.
func ekCertificate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+4 < len(b); i++ {
		if b[i] != 0x30 || b[i+1] != 0x82 {
			continue
		}
		n := 4 + int(b[i+2])<<8 + int(b[i+3])
		if i+n > len(b) {
			continue
		}
		if c, err := x509.ParseCertificate(b[i : i+n]); err == nil && c.PublicKeyAlgorithm == x509.RSA {
			return c
		}
	}
	t.Fatal("no RSA endorsement key certificate in the TPM's state")
	return nil
}

func TestStartFailures(t *testing.T) {
	ctx := testContext(t)
	tests := []struct {
		name string
		edit func(*vmm.Config)
		want string
	}{
		{"missing kernel", func(c *vmm.Config) { c.Kernel = "/nonexistent/vmlinuz" }, "/nonexistent/vmlinuz"},
		{"missing firmware", func(c *vmm.Config) { c.FirmwareVars = "/nonexistent/vars" }, "firmware variables"},
		{"bad disk", func(c *vmm.Config) { c.ExtraDisks = []vmm.Disk{{Path: "/nonexistent/disk", Serial: "d"}} }, "/nonexistent/disk"},
		{"no such emulator", func(c *vmm.Config) { c.Program = "/nonexistent/qemu" }, "/nonexistent/qemu"},
		{"bad accelerator", func(c *vmm.Config) { c.Accel = "auto" }, `accelerator "auto"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			tt.edit(&cfg)
			vm, err := Start(ctx, cfg)
			if err == nil {
				vm.qemu.Kill()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("directory is still there: %v", err)
			}
		})
	}
}
