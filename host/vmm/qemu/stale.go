package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/host/process"
)

// CleanStale removes what a killed supervisor left of the VM that had this directory. The caller must know that the supervisor is gone.
//
// Normally no process is left, since they die with the supervisor. Those that are still dying, or were started by a program that
// clears the parent-death signal, are found by their environment, which has the directory, or by their command line.
func CleanStale(ctx context.Context, dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fmt.Errorf("removing the remains of a virtual machine: %q is not the directory of one", dir)
	}
	if err := process.KillLeft(ctx, func(pid int) bool { return ownedBy("/proc", pid, dir) }); err != nil {
		return fmt.Errorf("ending what is left over from %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the remains of a virtual machine: %w", err)
	}
	return nil
}

// ownedBy says whether a process is one of ours and works in dir.
func ownedBy(proc string, pid int, dir string) bool {
	b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	argv := bytes.Split(b, []byte{0})
	program := filepath.Base(string(argv[0]))
	if !strings.HasPrefix(program, "qemu-system-") && !strings.HasPrefix(program, "swtpm") {
		return false
	}
	dir = filepath.Clean(dir)
	// A VM without firmware, TPM and initdata has nothing in its directory that its command line would name.
	env, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "environ"))
	if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool { return string(e) == "TMPDIR="+dir }) {
		return true
	}
	return slices.ContainsFunc(argv[1:], func(a []byte) bool { return bytes.Contains(a, []byte(dir+"/")) })
}
