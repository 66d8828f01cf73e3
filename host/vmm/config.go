// Package vmm starts, watches and ends one QEMU micro-VM with its software TPM.
//
// The package is host code: it holds no secret and the guest trusts nothing it does. Three rules shape it.
//
//   - Nothing is waited for by looking again and again. QEMU and swtpm get their channels (QMP, console, agent port, TPM control) as
//     already connected socket pairs, so there is no socket file to wait for, and none to clean up.
//   - The processes end with the process that started them, also when that is killed: the kernel sends them SIGKILL
//     (PR_SET_PDEATHSIG), and swtpm also ends when QEMU's end of the control channel closes. CleanStale removes what a killed
//     supervisor left in its directory.
//   - A guest that dies is explained: ExitError carries the reason the guest printed and the end of its console.
package vmm

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Accelerators a VM can run with.
const (
	AccelKVM = "kvm"
	AccelTCG = "tcg"
)

// GuestMAC is the hardware address of the guest's only network card. Each VM has a network of its own, so that it can be the same for all.
const GuestMAC = "52:54:00:c1:01:57"

// Config describes one VM.
type Config struct {
	// Name appears in messages and in the process list.
	Name string `json:"name"`
	// Dir is the VM's run-time directory. Start makes it; it is removed when the VM has ended.
	Dir string `json:"dir"`
	// ConsoleLog is the file that keeps the console output after the VM has ended; empty means Dir/console.log, which goes with Dir.
	ConsoleLog string `json:"console_log,omitempty"`

	Kernel  string `json:"kernel,omitempty"`
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
	// FirmwareCode and FirmwareVars are the two OVMF images; the second is copied for each VM.
	FirmwareCode string `json:"firmware_code"`
	FirmwareVars string `json:"firmware_vars"`

	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`

	// InitdataImage is the content of the first disk; nil means that there is none.
	InitdataImage []byte `json:"initdata_image,omitempty"`
	// Accel is AccelKVM or AccelTCG. There is no automatic choice here; see package doctor.
	Accel string `json:"accel"`
	// TPM, when not nil, gives the VM a TPM 2.0.
	TPM *TPM `json:"tpm,omitempty"`

	ExtraDisks []Disk `json:"extra_disks,omitempty"`

	// QEMU is the program; empty means qemu-system-x86_64 from PATH.
	QEMU string `json:"qemu,omitempty"`
}

// TPM configures the software TPM.
type TPM struct {
	// CADir holds the certificate authority that signs the endorsement key certificates; it is made when missing.
	CADir string `json:"ca_dir"`
}

// Disk is one more virtio block device.
type Disk struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only"`
	// Serial is what the guest finds under /sys/block/*/serial.
	Serial string `json:"serial"`
}

// Validate reports every fault of the configuration at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !safeName(c.Name) {
		bad("name %q: expected 1 to 64 letters, digits, dots and dashes", c.Name)
	}
	if !filepath.IsAbs(c.Dir) {
		bad("run-time directory %q is not an absolute path", c.Dir)
	}
	if c.FirmwareCode == "" || c.FirmwareVars == "" {
		bad("firmware code and variables are both needed")
	}
	if c.Kernel == "" && (c.Initrd != "" || c.Cmdline != "") {
		bad("an initrd or a command line needs a kernel")
	}
	if c.VCPUs < 1 || c.VCPUs > 255 {
		bad("%d virtual CPUs: expected 1 to 255", c.VCPUs)
	}
	if c.MemoryMiB < 128 || c.MemoryMiB > 1<<22 {
		bad("%d MiB of memory: expected 128 or more", c.MemoryMiB)
	}
	if c.Accel != AccelKVM && c.Accel != AccelTCG {
		bad("accelerator %q: expected %q or %q", c.Accel, AccelKVM, AccelTCG)
	}
	if len(c.InitdataImage)%512 != 0 {
		bad("initdata image has %d bytes, expected a multiple of 512", len(c.InitdataImage))
	}
	if c.TPM != nil && !filepath.IsAbs(c.TPM.CADir) {
		bad("directory of the TPM's certificate authority %q is not an absolute path", c.TPM.CADir)
	}
	for _, s := range []string{c.Dir, c.Kernel, c.Initrd, c.Cmdline, c.FirmwareCode, c.FirmwareVars} {
		if strings.ContainsAny(s, "\x00\n") {
			bad("%q contains a line break or a zero byte", s)
		}
	}
	for i, d := range c.ExtraDisks {
		if d.Path == "" || !safeName(d.Serial) || len(d.Serial) > 20 {
			bad("disk %d (%q): a path and a serial of up to 20 letters, digits, dots and dashes are needed", i, d.Serial)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("VM configuration: %w", errors.Join(errs...))
	}
	return nil
}

func safeName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' {
			return false
		}
	}
	return s[0] != '-' && s[0] != '.'
}
