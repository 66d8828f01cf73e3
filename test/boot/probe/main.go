// Command probe is an init for tests of measured boot: it prints the
// platform's registers and event log on the console and powers off. It does
// nothing else, so that a test waits for the firmware and the kernel only.
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := report(); err != nil {
		fmt.Printf("probe: error: %v\n", err)
	}
	fmt.Println("probe: end")
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Printf("probe: power off: %v\n", err)
	}
	select {}
}

func report() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"securityfs", "/sys/kernel/security"},
	} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	if up, err := os.ReadFile("/proc/uptime"); err == nil {
		fmt.Printf("probe: uptime %s", up)
	}
	if line, err := os.ReadFile("/proc/cmdline"); err == nil {
		fmt.Printf("probe: cmdline %s", line)
	}
	for i := range 24 {
		v, err := os.ReadFile(fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", i))
		if err != nil {
			return fmt.Errorf("reading PCR %d: %w", i, err)
		}
		fmt.Printf("probe: pcr %d %s\n", i, strings.ToLower(strings.TrimSpace(string(v))))
	}
	log, err := os.ReadFile("/sys/kernel/security/tpm0/binary_bios_measurements")
	if err != nil {
		return fmt.Errorf("reading the event log: %w", err)
	}
	// Short lines: a serial console may be slow, and lines may be cut.
	text := base64.StdEncoding.EncodeToString(log)
	for len(text) > 0 {
		n := min(len(text), 120)
		fmt.Printf("probe: log %s\n", text[:n])
		text = text[n:]
	}
	return nil
}
