package boot

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fatal prints the one line the host looks for. The reason is flattened: one fatal error is one line.
func fatal(console io.Writer, err error) {
	reason := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
	fmt.Fprintf(console, "cloister-guest: fatal: %s\n", reason)
}

// powerOff writes everything back, detaches block file systems and switches the machine off. It does not return.
func powerOff() {
	unix.Sync()
	for _, target := range blockMounts() {
		_ = unix.Unmount(target, unix.MNT_DETACH)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// A machine without a power switch is stopped; PID 1 must not return.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	select {}
}

// blockMounts lists mounts of block devices, the latest first.
func blockMounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var targets []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, fs, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(mount), strings.Fields(fs)
		if ok && len(left) > 4 && len(right) > 1 && strings.HasPrefix(right[1], "/dev/") {
			targets = append(targets, left[4])
		}
	}
	slices.Reverse(targets)
	return targets
}
