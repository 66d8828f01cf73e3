// Package vmtest is what tests that boot whole VMs share: it says what is missing, and where their files are.
package vmtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/paths"
)

// Need skips a test that boots VMs when something for it is missing, and says what. CI installs everything and fails
// instead of skipping.
func Need(t testing.TB) {
	t.Helper()
	needs.Long(t, "boots whole VMs")
	needs.Programs(t, "qemu-system-x86_64", "swtpm", "swtpm_setup", "gcc", "make")
	needs.Files(t, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/include/seccomp.h")
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

// Alone keeps other tests that call it, those of other packages too, waiting until the test ends: every command of a Home cleans up after the
// pods of killed supervisors, and tells of it once.
func Alone(t testing.TB) {
	t.Helper()
	cache := filepath.Join(Home(t), "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := paths.WaitLock(t.Context(), filepath.Join(cache, "tests-alone"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lock.Unlock)
}
