// Package vmm holds what all virtual machine monitors have in common: the description of a virtual machine, its devices, and how its
// end is explained. The monitors are the packages below it: qemu, cloudhypervisor, remote. Who starts pods has the interface it needs.
//
// The packages are host code: they hold no secret and the guest trusts nothing they do. Three rules shape them.
//
//   - Nothing is waited for by looking again and again. Where a monitor allows it, it gets its channels as already connected socket
//     pairs, so that there is no socket file to wait for, and none to clean up.
//   - The processes end with the process that started them, also when that is killed (package process).
//   - A guest that dies is explained: ExitError carries the reason the guest printed and the end of its console.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Accelerators a VM can run with.
const (
	AccelKVM = "kvm"
	AccelTCG = "tcg"
)

// TranslatedMiB bounds what emulation keeps of the guest's code in the host's form. By itself QEMU would keep up to 1 GiB.
const TranslatedMiB = 128

// GuestMAC is the hardware address of the guest's only network card. Each VM has a network of its own, so that it can be the same for all.
const GuestMAC = "52:54:00:c1:01:57"

// Machine types of QEMU.
const (
	MachineQ35 = "q35"
	// MachineMicroVM has no firmware to measure, no PCI and no ACPI hot plug; it starts fastest.
	MachineMicroVM = "microvm"
)

// Config describes one VM. A monitor refuses what it cannot do.
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
	// FirmwareCode and FirmwareVars are the two OVMF images; the second is copied for each VM. Without both the VM starts the kernel
	// with the monitor's own small firmware, which measures nothing.
	FirmwareCode string `json:"firmware_code"`
	FirmwareVars string `json:"firmware_vars"`
	// Machine is MachineQ35 (also when empty) or MachineMicroVM.
	Machine string `json:"machine,omitempty"`

	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
	// MaxVCPUs and MaxMemoryMiB leave room for hot plug; 0 is none. Confidential VMs have none.
	MaxVCPUs     int `json:"max_vcpus,omitempty"`
	MaxMemoryMiB int `json:"max_memory_mib,omitempty"`

	// Hugepages takes all of the memory from the host's huge pages before the guest starts.
	Hugepages bool `json:"hugepages,omitempty"`
	// CPUFeatures are added to the processor's model, as NAME=VALUE,…; see CheckCPUFeatures.
	CPUFeatures string `json:"cpu_features,omitempty"`

	// RootImage, when not empty, is the file of the first disk, which the guest reads only: a disk with the root file system of a guest
	// that has no initrd. Its serial is RootImageSerial.
	RootImage string `json:"root_image,omitempty"`
	// InitdataImage is the content of the first disk after it; nil means that there is none.
	InitdataImage []byte `json:"initdata_image,omitempty"`
	// Accel is AccelKVM or AccelTCG. There is no automatic choice here; see package doctor.
	Accel string `json:"accel"`
	// TPM, when not nil, gives the VM a TPM 2.0.
	TPM *TPM `json:"tpm,omitempty"`
	// TEE, when not nil, makes the VM a confidential one.
	TEE *TEE `json:"tee,omitempty"`

	ExtraDisks []Disk `json:"extra_disks,omitempty"`
	// LateDisks leaves room for disks that are read-only or Sealed and come while the VM runs, in a VM that is otherwise made without hot plug.
	LateDisks bool `json:"late_disks,omitempty"`
	// NICs are the network cards on taps. UserNetwork is the monitor's own user-mode network instead, with one card of address GuestMAC.
	NICs        []NIC `json:"-"`
	UserNetwork bool  `json:"user_network,omitempty"`
	// Share, when not nil, is the directory the guest sees through virtio-fs.
	Share *Share `json:"-"`
	// Vsock gives the guest a vsock device instead of, for QEMU, the virtio-serial port.
	Vsock bool `json:"vsock,omitempty"`
	// Balloon lets the host take back free memory of the guest (free page reporting).
	Balloon bool `json:"balloon,omitempty"`

	// Template, when not empty, is the directory of a template of this VM (see package qemu) that it starts from. Never for one that is
	// measured or confidential.
	Template string `json:"template,omitempty"`
	// MemoryCopier is the program, with its first arguments, that copies a template's memory in the place of this process, so that
	// the memory is charged to where Started moves it.
	MemoryCopier []string `json:"-"`

	// NetNS is the network namespace the monitor runs in; empty is ours. A monitor with tap file descriptors needs none.
	NetNS string `json:"-"`
	// Started, when not nil, is called with the process number of each process of the VM before the guest runs, for example to
	// move it into its control group. An error ends the start.
	Started func(pid int) error `json:"-"`

	// Program is the monitor's program; empty means its usual name from PATH.
	Program string `json:"program,omitempty"`
}

// TEE is the hardware protection of a VM.
type TEE struct {
	// Kind is snp, tdx, se or cca.
	Kind string `json:"kind"`
	// InitdataDigest goes into the field that the hardware signs: SNP HOST_DATA (32 bytes), TDX MRCONFIGID (48), CCA
	// personalization value (64); it is cut, or filled with zeros on the right. SE has no such field.
	InitdataDigest []byte `json:"initdata_digest,omitempty"`
	// SNPPolicy is the guest policy; IDBlock and IDAuth are base64, both or neither.
	SNPPolicy         uint64 `json:"snp_policy,omitempty"`
	SNPIDBlock        string `json:"snp_id_block,omitempty"`
	SNPIDAuth         string `json:"snp_id_auth,omitempty"`
	TDXQuoteVsockPort int    `json:"tdx_quote_vsock_port,omitempty"` // 0 is the quote service's unix socket, or port 4050 without one
}

// NIC is a virtio network card on a tap.
type NIC struct {
	// ID names the card for RemoveNIC: the name of its interface in the pod's network namespace.
	ID  string
	MAC string
	// Taps are the queues of the tap, Vhosts as many of /dev/vhost-net or none. The monitor gets copies; the caller closes them
	// after the call.
	Taps, Vhosts []*os.File
	MTU          int
}

// Share is a shared directory, served by a virtiofsd that listens or is connected already.
type Share struct {
	Tag    string // the name the guest mounts
	Socket string // the path of the virtiofsd's vhost-user socket
}

// TPM configures the software TPM.
type TPM struct {
	// CADir holds the certificate authority that signs the endorsement key certificates; it is made when missing.
	CADir string `json:"ca_dir"`
}

// Disk is one more virtio block device.
type Disk struct {
	// Path is an image file or a block device of the host.
	Path string `json:"path"`
	// Format is FormatRaw, or FormatVMDK for a descriptor of flat extents, which can only be read. A monitor that does not know a
	// format says so by an error that wraps errors.ErrUnsupported.
	Format   string `json:"format,omitempty"`
	ReadOnly bool   `json:"read_only"`
	// Serial is what the guest finds under /sys/block/*/serial: up to 20 letters, digits, dots and dashes. It names the disk for
	// RemoveDisk, too.
	Serial string `json:"serial"`
	// Discard passes the guest's discards on, so that a sparse file gives space back.
	Discard bool `json:"discard,omitempty"`
	// Sealed says that the guest is going to write what it has encrypted, and trusts nothing that was there before. An error of the host's
	// file system, as when it is full, is the guest's to handle: the machine goes on.
	Sealed bool `json:"sealed,omitempty"`
}

// Late says whether the disk is one of those that a VM with LateDisks takes.
func (d *Disk) Late() bool { return d.ReadOnly || d.Sealed }

// Formats of disks.
const (
	FormatRaw  = ""
	FormatVMDK = "vmdk"
)

// Machine is a running virtual machine, as every monitor gives it to who starts pods.
type Machine interface {
	// Dial opens a stream to a port of the guest (1024 is its agent). It does not wait for the guest: the first answer is the sign
	// that it is there, which a deadline of ctx bounds.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Exited is closed when the VM has ended and nothing of it is left on the host; Err then says why, nil when Stop ended it.
	Exited() <-chan struct{}
	Err() error
	// ConsoleTail is the end of the guest's console, FatalReason what the guest gave as the reason of its end, or "".
	ConsoleTail(n int) []string
	FatalReason() string
	// PID is the process number of the monitor, 0 when it runs elsewhere.
	PID() int
	// Stop ends the VM and waits until nothing of it is left. Until ctx ends the guest may power off by itself.
	Stop(ctx context.Context) error
	// Plug is how devices come and go while the VM runs. What a monitor, or this VM, cannot do is an error that wraps
	// errors.ErrUnsupported.
	Plug
}

// Plug changes a running VM.
type Plug interface {
	// AddDisk returns the place where the guest finds the disk, for the agent's storage and device requests.
	AddDisk(ctx context.Context, d Disk) (Place, error)
	RemoveDisk(ctx context.Context, serial string) error
	// AddNIC returns the card's place; the guest finds it by its MAC address, too.
	AddNIC(ctx context.Context, n NIC) (Place, error)
	RemoveNIC(ctx context.Context, id string) error
	// Resize brings the VM to at least this many processors and this much memory and returns what it has now. The guest still has
	// to be asked to bring them online (OnlineCPUMem). It never shrinks processors; memory is given back by the balloon.
	Resize(ctx context.Context, vcpus, memoryMiB int) (haveVCPUs, haveMemoryMiB int, err error)
}

// Place is where a guest finds a device.
type Place struct {
	// Driver is the agent's storage driver for a disk there, which is also its device type: blk (PCI), scsi, mmioblk.
	Driver string
	// Address is the PCI path as slots in hexadecimal (02/01), SCSI ID:LUN, or for mmioblk /dev/vdX.
	Address string
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
	if (c.FirmwareCode == "") != (c.FirmwareVars == "") && c.TEE == nil {
		bad("firmware code and variables are both needed, or neither")
	}
	if c.FirmwareCode == "" && (c.TPM != nil || c.Kernel == "") {
		bad("a TPM, or a start without a kernel, needs firmware (hint: guest.firmware, such as OVMF's code; a guest image knows its own)")
	}
	if c.Machine != "" && c.Machine != MachineQ35 && c.Machine != MachineMicroVM {
		bad("machine type %q: expected %q or %q", c.Machine, MachineQ35, MachineMicroVM)
	}
	if c.MaxVCPUs != 0 && c.MaxVCPUs < c.VCPUs || c.MaxVCPUs > 255 {
		bad("at most %d virtual CPUs: expected 0, or %d to 255", c.MaxVCPUs, c.VCPUs)
	}
	if c.MaxMemoryMiB != 0 && c.MaxMemoryMiB < c.MemoryMiB || c.MaxMemoryMiB > 1<<22 {
		bad("at most %d MiB of memory: expected 0, or %d and more", c.MaxMemoryMiB, c.MemoryMiB)
	}
	if c.UserNetwork && len(c.NICs) > 0 {
		bad("the user-mode network excludes network cards on taps")
	}
	if c.TEE != nil && (c.MaxVCPUs > 0 || c.MaxMemoryMiB > 0 || c.Share != nil || c.TPM != nil) {
		bad("a confidential VM has no hot plug, no shared directory and no software TPM")
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
	if err := CheckCPUFeatures(c.CPUFeatures); err != nil {
		bad("processor features: %w", err)
	}
	for _, s := range []string{c.Dir, c.Kernel, c.Initrd, c.Cmdline, c.FirmwareCode, c.FirmwareVars, c.RootImage} {
		if strings.ContainsAny(s, "\x00\n") {
			bad("%q contains a line break or a zero byte", s)
		}
	}
	for i, d := range c.ExtraDisks {
		if err := d.Validate(); err != nil {
			bad("number %d: %w", i, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("VM configuration: %w", errors.Join(errs...))
	}
	return nil
}

// Validate says what is wrong with a disk.
func (d Disk) Validate() error {
	if d.Path == "" || !safeName(d.Serial) || len(d.Serial) > 20 {
		return fmt.Errorf("disk %q: a path and a serial of up to 20 letters, digits, dots and dashes are needed", d.Serial)
	}
	if d.Format != FormatRaw && (d.Format != FormatVMDK || !d.ReadOnly) {
		return fmt.Errorf("disk %q: format %q, expected none, or %s of a disk that is only read", d.Serial, d.Format, FormatVMDK)
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
