package cgroup

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// TestVersion2 runs the tests that need no controller once more where version 2 is all there is: in a mount namespace of their own, with
// the tree of version 2 in place of what this host has.
func TestVersion2(t *testing.T) {
	const inside = "CLOISTER_TEST_CGROUP2"
	switch {
	case os.Getenv(inside) != "":
		if m := Mode(); m != ModeV2 {
			t.Fatalf("the mode is %s", m)
		}
		return
	case Mode() == ModeV2:
		needs.Optional(t, "all tests run with version 2 here")
	case os.Getuid() != 0:
		needs.Root(t, "a mount namespace")
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c",
		`mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup || { echo NOT HERE; exit 0; }; exec "$0" "$@"`,
		os.Args[0], "-test.v", "-test.run", "^(TestVersion2|TestProcessesBelow|TestDamagedState|TestLeave)$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "NOT HERE") {
		needs.Missing(t, "control groups of version 2: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestProcessesBelow") || !strings.Contains(string(out), "--- PASS: TestLeave") {
		t.Errorf("%v: %s", err, out)
	}
}
