package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// host makes a machine from files, with all programs installed and a KVM that answers as given.
func host(t *testing.T, kvm error, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	base := map[string]string{
		"/proc/cpuinfo":                   "processor : 0\nflags : fpu vmx sse\n",
		"/proc/meminfo":                   "MemTotal: 8 kB\nMemAvailable:    2097152 kB\n",
		"/usr/share/OVMF/OVMF_CODE_4M.fd": "c",
		"/usr/share/OVMF/OVMF_VARS_4M.fd": "v",
	}
	for name, text := range files {
		base[name] = text
	}
	for name, text := range base {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Host{
		Root: root, Home: root,
		LookPath: func(p string) (string, error) { return "/usr/bin/" + p, nil },
		Output: func(context.Context, string, ...string) (string, error) {
			return "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright", nil
		},
		ProbeKVM: func(context.Context, string) error { return kvm },
	}
}

func find(t *testing.T, r *Report, name string) Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q", name)
	return Check{}
}

func TestAccelerator(t *testing.T) {
	tests := []struct {
		name, accel, reason string
		kvm                 error
		files               map[string]string
	}{
		{"works", "kvm", "KVM works kvm_intel", nil, map[string]string{"/dev/kvm": "", "/sys/module/kvm_intel/x": ""}},
		{"pvm", "tcg", "cannot run stock kernels", nil, map[string]string{"/dev/kvm": "", "/sys/module/kvm_intel/x": "",
			"/sys/module/kvm_pvm/x": ""}},
		{"no device", "tcg", "no /dev/kvm", nil, nil},
		{"no module", "tcg", "neither kvm_intel nor kvm_amd", nil, map[string]string{"/dev/kvm": ""}},
		{"refused", "tcg", "permission denied", fs.ErrPermission, map[string]string{"/dev/kvm": "", "/sys/module/kvm_amd/x": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Probe(t.Context(), host(t, tt.kvm, tt.files))
			if r.Accel != tt.accel || !strings.Contains(r.AccelReason, strings.Replace(tt.reason, "permission denied", "permission", 1)) {
				t.Errorf("%s: %s", r.Accel, r.AccelReason)
			}
			if _, err := r.SelectAccel("kvm"); (err == nil) != (tt.accel == "kvm") || err != nil && (strings.Contains(err.Error(), "is used") ||
				!strings.Contains(err.Error(), "(hint: ")) {
				t.Errorf("asking for kvm: %v", err)
			}
			if a, err := r.SelectAccel("tcg"); a != "tcg" || err != nil {
				t.Errorf("asking for tcg: %s, %v", a, err)
			}
		})
	}
}

func TestTEE(t *testing.T) {
	r := Probe(t.Context(), host(t, nil, nil))
	for _, want := range []string{"", "auto", "tpm"} {
		if got, err := r.SelectTEE(want); got != "tpm" || err != nil {
			t.Errorf("%q: %s, %v", want, got, err)
		}
	}
	for _, want := range []string{"snp", "tdx", "se", "cca"} {
		if got, err := r.SelectTEE(want); err == nil || !strings.Contains(err.Error(), "this host has none") {
			t.Errorf("%q on a host without it: %q, %v", want, got, err)
		}
	}
	if _, err := r.SelectTEE("sample"); err == nil {
		t.Error("an unknown TEE was accepted")
	}
	r = Probe(t.Context(), host(t, nil, map[string]string{"/dev/sev": "", "/sys/module/kvm_amd/parameters/sev_snp": "Y\n"}))
	if _, err := r.SelectTEE("snp"); err == nil || !strings.Contains(err.Error(), "cannot start") {
		t.Errorf("SNP: %v", err)
	}
	if !strings.Contains(r.TEEReason, "AMD SEV-SNP") {
		t.Errorf("reason %q does not name what is there", r.TEEReason)
	}
}

func TestMissingPrograms(t *testing.T) {
	h := host(t, nil, nil)
	h.LookPath = func(string) (string, error) { return "", errors.New("no") }
	r := Probe(t.Context(), h)
	err := r.Err()
	if err == nil {
		t.Fatal("a host without programs is fine")
	}
	for _, want := range []string{"QEMU", "swtpm-tools", "apt-get install"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in %v", want, err)
		}
	}
	for _, tee := range []string{"auto", "tpm"} {
		if _, err := r.SelectTEE(tee); err == nil {
			t.Errorf("TEE %s without swtpm was accepted", tee)
		}
	}
	if err := Probe(t.Context(), host(t, nil, nil)).Err(); err != nil {
		t.Errorf("complete host: %v", err)
	}
}

func TestOldQEMU(t *testing.T) {
	h := host(t, nil, nil)
	h.Output = func(context.Context, string, ...string) (string, error) { return "QEMU emulator version 5.2.0", nil }
	r := Probe(t.Context(), h)
	if c := find(t, r, "QEMU"); c.Status != Missing || !strings.Contains(c.Detail, "expected 7.0") {
		t.Errorf("%+v", c)
	}
	for _, s := range []string{"", "version", "version ", "version x.y", "QEMU"} {
		if _, major := parseQEMUVersion(s); major != 0 {
			t.Errorf("%q has major version %d", s, major)
		}
	}
}

func TestSilentKVMIsNotWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	// A pipe without a writer stands for a device that blocks; what counts is that the probe returns.
	if err := probeKVM(ctx, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
	if err := tryKVM(os.DevNull); err == nil {
		t.Error("/dev/null passes for KVM")
	}
}

func TestThisMachine(t *testing.T) {
	r := Probe(t.Context(), Host{Home: t.TempDir()})
	if r.Accel == "" || r.AccelReason == "" || len(r.Checks) < 10 {
		t.Errorf("%+v", r)
	}
	t.Logf("accelerator %s (%s), TEE %s (%s)", r.Accel, r.AccelReason, r.TEE, r.TEEReason)
}
