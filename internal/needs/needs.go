// Package needs says what a test needs and does not find. Without it the test is skipped, and in CI (CI=true), where scripts/deps.sh has
// installed everything, it fails: a test that nobody runs proves nothing. What even CI cannot have is Optional, with the reason.
//
// All tests of this repository skip through this package; a test beside it sees to that.
package needs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Missing ends a test that lacks something which CI has: what names it, as in "root, for mounts" or "e2fsck: executable file not found".
func Missing(t testing.TB, what string, args ...any) {
	t.Helper()
	what = fmt.Sprintf(what, args...)
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s; in CI everything has to be there", what)
	}
	t.Skipf("missing: %s; `scripts/deps.sh test` installs what is a package", what)
}

// Optional ends a test that lacks something which CI need not have either, and says why: hardware, a program that the distribution does not
// have, recordings that are not part of the repository.
func Optional(t testing.TB, why string, args ...any) {
	t.Helper()
	t.Skipf(why, args...)
}

// Long leaves a test out when go test has the flag -short.
func Long(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("%s, left out by -short", what)
	}
}

// Root needs the effective user root, for what is said in why ("mounts").
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root, for %s", why)
	}
}

// Program needs a program and returns its path. Folders of the administrator are searched, too: a user's PATH may lack them.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path
			}
		}
	}
	Missing(t, "the program %v", err)
	return ""
}

// Programs needs programs.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		Program(t, name)
	}
}

// Files needs files or directories, also devices.
func Files(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			Missing(t, "%v", err)
		}
	}
}

// FileSystem needs a type of file systems in the kernel that runs: one that is built in, or whose module is loaded or can be.
func FileSystem(t testing.TB, name string) {
	t.Helper()
	if hasFileSystem(t, name) {
		return
	}
	_ = exec.CommandContext(t.Context(), "modprobe", "fs-"+name).Run() // as mount(2) does; what came of it shows below
	if !hasFileSystem(t, name) {
		Missing(t, "%s in this kernel", name)
	}
}

func hasFileSystem(t testing.TB, name string) bool {
	t.Helper()
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		Missing(t, "%v", err)
	}
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
			return true
		}
	}
	return false
}
