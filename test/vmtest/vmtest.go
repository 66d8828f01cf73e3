// Package vmtest is what tests that boot whole VMs share: it says what is missing, and where their files are.
package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Need skips a test that boots VMs when something for it is missing, and says what. CI installs everything and fails
// instead of skipping.
func Need(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots whole VMs, left out by -short")
	}
	missing := func(what string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing, in CI everything has to be there", what)
		}
		t.Skipf("%s is missing; `make deps` installs it", what)
	}
	for _, program := range []string{"qemu-system-x86_64", "swtpm", "swtpm_setup", "gcc", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(program)
		}
	}
	for _, file := range []string{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/include/seccomp.h"} {
		if _, err := os.Stat(file); err != nil {
			missing(file)
		}
	}
}

// Home is the CLOISTER_HOME of VM tests: the user's own, so that the guest image is built once for all of them.
func Home(t testing.TB) string {
	t.Helper()
	if home := os.Getenv("CLOISTER_HOME"); home != "" {
		return home
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatalf("finding the home folder: %v", err)
	}
	return filepath.Join(home, ".cloister")
}
