package attest_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/guest/attest"
)

func TestDetectSaysWhy(t *testing.T) {
	_, err := attest.Detect(t.Context(), t.TempDir())
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, attest.ErrUnsupported) {
		t.Errorf("got %v, expected that nothing is there", err)
	}
	for _, tee := range []string{"tdx: no /dev/tdx_guest", "tdx: no processor flag", "snp: no /dev/sev-guest", "tpm: "} {
		if err == nil || !strings.Contains(err.Error(), tee) {
			t.Errorf("the reason does not name %q: %v", tee, err)
		}
	}
}

// TestDetectTakesNothingWeaker puts a TPM beside a TEE that this build cannot attest.
func TestDetectTakesNothingWeaker(t *testing.T) {
	for file, want := range map[string]string{
		"dev/tdx_guest":                        "tdx: /dev/tdx_guest: it is present",
		"sys/devices/virtual/misc/tdx_guest/x": "tdx: /sys/devices/virtual/misc/tdx_guest: it is present",
		"proc/cpuinfo":                         "tdx: processor flag tdx_guest: it is present",
		"dev/sev-guest":                        "snp: /dev/sev-guest: it is present",
		"sys/devices/platform/sev-guest/x":     "snp: /sys/devices/platform/sev-guest: it is present",
		"dev/csv-guest":                        "csv: /dev/csv-guest: it is present",
		"dev/uv":                               "se: /dev/uv: it is present",
	} {
		root := t.TempDir()
		for _, f := range []string{file, "dev/tpmrm0"} {
			path := filepath.Join(root, f)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("flags : fpu tdx_guest sse\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		a, err := attest.Detect(t.Context(), root)
		if a != nil || !errors.Is(err, attest.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v, expected %q", file, a, err, want)
		}
	}
}
