package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packageOf names the Debian package of a program.
func packageOf(program string) string {
	switch program {
	case "swtpm":
		return "swtpm"
	case "swtpm_setup", "swtpm_localca":
		return "swtpm-tools"
	}
	return "qemu-system-x86"
}

func runProgram(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return string(out), err
}

func (h Host) tool(name string) Check {
	c := Check{Name: name, Status: OK, Required: true}
	path, err := h.LookPath(name)
	if err != nil {
		c.Status, c.Detail, c.Hint = Missing, "not installed", "apt-get install "+packageOf(name)
		return c
	}
	c.Detail = path
	return c
}

// minQEMU is the oldest major version whose options Cloister uses.
const minQEMU = 7

func (h Host) qemu(ctx context.Context) (Check, string) {
	c := h.tool("qemu-system-x86_64")
	c.Name = "QEMU"
	if c.Status != OK {
		return c, ""
	}
	path := c.Detail
	out, err := h.Output(ctx, path, "--version")
	if err != nil {
		c.Status, c.Detail = Missing, fmt.Sprintf("%s --version: %v", path, err)
		return c, ""
	}
	version, major := parseQEMUVersion(out)
	if major < minQEMU {
		c.Status = Missing
		c.Detail = fmt.Sprintf("version %q of %s, expected %d.0 or later", version, path, minQEMU)
		c.Hint = "install a newer QEMU"
		return c, ""
	}
	c.Detail = version + ", " + path
	return c, path
}

// parseQEMUVersion reads "QEMU emulator version 7.2.22 (Debian ...)"; major is 0 when there is no version.
func parseQEMUVersion(out string) (version string, major int) {
	_, rest, ok := strings.Cut(out, "version ")
	if !ok {
		return "", 0
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0
	}
	version = fields[0]
	first, _, _ := strings.Cut(version, ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return version, 0
	}
	return version, major
}

// firmwareFiles are the places where distributions put OVMF without secure boot, variables beside it.
func firmwareFiles() [][2]string {
	return [][2]string{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	}
}

func (h Host) firmware() (c Check, code, vars string) {
	c = Check{Name: "OVMF firmware", Status: OK, Required: true}
	for _, f := range firmwareFiles() {
		if h.exists(f[0]) && h.exists(f[1]) {
			c.Detail = f[0]
			return c, h.path(f[0]), h.path(f[1])
		}
	}
	c.Status, c.Detail, c.Hint = Missing, "no OVMF_CODE and OVMF_VARS files were found", "apt-get install ovmf"
	return c, "", ""
}

func (h Host) memory() Check {
	c := Check{Name: "memory", Status: Warn, Detail: "unknown"}
	for line := range strings.Lines(h.read("/proc/meminfo")) {
		rest, ok := strings.CutPrefix(line, "MemAvailable:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			break
		}
		kib, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			break
		}
		c.Detail = fmt.Sprintf("%d MiB available", kib>>10)
		if kib >= 1<<20 {
			c.Status = OK
		} else {
			c.Hint = "a pod needs 512 MiB or more; building the guest image needs 1 GiB"
		}
	}
	return c
}

func (h Host) disk() Check {
	dir := h.Home
	if dir == "" {
		dir = os.TempDir()
	}
	return h.space("disk", dir, 2048, "the guest image and its parts need about 2 GiB")
}

// space warns when a directory has less than need MiB.
func (h Host) space(name, dir string, need int, hint string) Check {
	c := Check{Name: name, Status: Warn, Hint: hint}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.Detail = fmt.Sprintf("asking for the free space of %s: %v", dir, err)
		return c
	}
	free := st.Bavail * uint64(st.Bsize) >> 20
	c.Detail = fmt.Sprintf("%d MiB free in %s", free, dir)
	if free >= uint64(need) {
		c.Status, c.Hint = OK, ""
	}
	return c
}
