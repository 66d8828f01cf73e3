package cloudhypervisor

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/host/vmm"
)

// vmConfig and its parts are the body of vm.create, with the members used here; names and meaning are those of the OpenAPI description.
type vmConfig struct {
	CPUs     cpusConfig     `json:"cpus"`
	Memory   memoryConfig   `json:"memory"`
	Payload  payloadConfig  `json:"payload"`
	Disks    []diskConfig   `json:"disks,omitempty"`
	FS       []fsConfig     `json:"fs,omitempty"`
	RNG      rngConfig      `json:"rng"`
	Balloon  *balloonConfig `json:"balloon,omitempty"`
	Vsock    vsockConfig    `json:"vsock"`
	Serial   consoleConfig  `json:"serial"`
	Console  consoleConfig  `json:"console"`
	Platform platformConfig `json:"platform"`
}

type cpusConfig struct {
	Boot int `json:"boot_vcpus"`
	Max  int `json:"max_vcpus"`
}

type memoryConfig struct {
	Size    int64 `json:"size"` // bytes
	Hotplug int64 `json:"hotplug_size,omitempty"`
	Shared  bool  `json:"shared"`
	// Hugepages and Prefault take all of the memory from huge pages at the start.
	Hugepages bool `json:"hugepages,omitempty"`
	Prefault  bool `json:"prefault,omitempty"`
}

type payloadConfig struct {
	Firmware   string `json:"firmware,omitempty"`
	Kernel     string `json:"kernel,omitempty"`
	Initramfs  string `json:"initramfs,omitempty"`
	Cmdline    string `json:"cmdline,omitempty"`
	MRConfigID string `json:"mrconfigid,omitempty"` // base64, not in every build
}

type diskConfig struct {
	ID        string `json:"id"`
	Path      string `json:"path"`
	ReadOnly  bool   `json:"readonly"`
	Serial    string `json:"serial"`
	Sparse    bool   `json:"sparse"`
	ImageType string `json:"image_type"`
}

type netConfig struct {
	ID        string `json:"id"`
	MAC       string `json:"mac"`
	MTU       int    `json:"mtu,omitempty"`
	NumQueues int    `json:"num_queues"`
}

type fsConfig struct {
	Tag       string `json:"tag"`
	Socket    string `json:"socket"`
	NumQueues int    `json:"num_queues"`
	QueueSize int    `json:"queue_size"`
}

type rngConfig struct {
	Src string `json:"src"`
}

type balloonConfig struct {
	Size              int64 `json:"size"`
	DeflateOnOOM      bool  `json:"deflate_on_oom"`
	FreePageReporting bool  `json:"free_page_reporting"`
}

type vsockConfig struct {
	CID    int    `json:"cid"`
	Socket string `json:"socket"`
}

type consoleConfig struct {
	Mode string `json:"mode"`
	File string `json:"file,omitempty"`
}

type platformConfig struct {
	TDX bool `json:"tdx,omitempty"`
}

// pingAnswer, vmInfo and pciInfo are the answers that are read.
type pingAnswer struct {
	Version  string   `json:"version"`
	Features []string `json:"features"`
}

type vmInfo struct {
	Config struct {
		CPUs    cpusConfig `json:"cpus"`
		Payload struct {
			MRConfigID string `json:"mrconfigid"`
		} `json:"payload"`
		Platform platformConfig `json:"platform"`
	} `json:"config"`
	State  string `json:"state"`
	Memory int64  `json:"memory_actual_size"` // bytes
}

type pciInfo struct {
	BDF string `json:"bdf"`
}

// vsockCID is the guest's address; with hybrid vsock every guest can have the same.
const vsockCID = 3

// check refuses what Cloud Hypervisor, or this package, cannot do.
func check(c *vmm.Config) error {
	var errs []error
	no := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("Cloud Hypervisor: %w: "+format, append([]any{errors.ErrUnsupported}, args...)...))
	}
	if c.Accel != vmm.AccelKVM {
		no("accelerator %q, only %q; hint: with vmm.kind \"qemu\" it can be emulated", c.Accel, vmm.AccelKVM)
	}
	if c.TPM != nil {
		no("a software TPM; hint: use vmm.kind \"qemu\"")
	}
	if c.UserNetwork {
		no("a user-mode network; hint: use network cards on taps, or vmm.kind \"qemu\"")
	}
	if c.CPUFeatures != "" {
		no("processor features %s; hint: leave vmm.cpu_features out, or use hypervisor qemu", c.CPUFeatures)
	}
	if c.Kernel == "" {
		no("a start without a kernel")
	}
	switch {
	case c.TEE == nil && c.FirmwareCode != "":
		no("firmware; the kernel is started directly; hint: leave the firmware out, or use vmm.kind \"qemu\"")
	case c.TEE != nil && c.TEE.Kind != "tdx":
		no("protection by %s, only tdx; hint: use vmm.kind \"qemu\"", c.TEE.Kind)
	case c.TEE != nil && c.FirmwareCode == "":
		no("TDX without firmware; hint: configure the TD's firmware (TDShim or OVMF)")
	}
	for _, n := range c.NICs {
		if len(n.Taps) == 0 {
			no("network card %s without a tap", n.ID)
		}
	}
	return errors.Join(errs...)
}

// newConfig describes the VM. The network cards are added to it one by one, because their taps go along with a call each.
func newConfig(c *vmm.Config, vsock, initdata, consoleFile string) vmConfig {
	v := vmConfig{
		CPUs:    cpusConfig{c.VCPUs, max(c.VCPUs, c.MaxVCPUs)},
		Memory:  memoryConfig{Size: int64(c.MemoryMiB) << 20, Shared: c.Share != nil},
		Payload: payloadConfig{Kernel: c.Kernel, Initramfs: c.Initrd, Cmdline: c.Cmdline},
		RNG:     rngConfig{"/dev/urandom"},
		Vsock:   vsockConfig{vsockCID, vsock},
		Serial:  consoleConfig{Mode: "Off"},
		Console: consoleConfig{Mode: "Off"},
	}
	v.Memory.Hugepages, v.Memory.Prefault = c.Hugepages, c.Hugepages
	if c.MaxMemoryMiB > c.MemoryMiB {
		v.Memory.Hotplug = int64(c.MaxMemoryMiB-c.MemoryMiB) << 20
	}
	if c.TEE != nil {
		v.Platform.TDX = true
		v.Payload.Firmware = c.FirmwareCode
		if d := c.TEE.InitdataDigest; len(d) > 0 {
			id := make([]byte, 48)
			copy(id, d)
			v.Payload.MRConfigID = base64.StdEncoding.EncodeToString(id)
		}
	}
	// The guest's kernel decides by its command line where it writes.
	output := consoleConfig{"File", consoleFile}
	if strings.Contains(" "+c.Cmdline, " console=hvc0") {
		v.Console = output
	} else {
		v.Serial = output
	}
	if c.RootImage != "" {
		v.Disks = append(v.Disks, newDisk(vmm.Disk{Path: c.RootImage, Serial: vmm.RootImageSerial, ReadOnly: true}))
	}
	if initdata != "" {
		v.Disks = append(v.Disks, newDisk(vmm.Disk{Path: initdata, Serial: "initdata", ReadOnly: true}))
	}
	for _, d := range c.ExtraDisks {
		v.Disks = append(v.Disks, newDisk(d))
	}
	if c.Share != nil {
		v.FS = []fsConfig{{c.Share.Tag, c.Share.Socket, 1, 1024}}
	}
	if c.Balloon {
		v.Balloon = &balloonConfig{DeflateOnOOM: true, FreePageReporting: true}
	}
	return v
}

// newDisk says that the content is raw. A monitor that guesses would take what the guest writes into the first sector for the header
// of an image format, whose backing file can be any file of the host.
func newDisk(d vmm.Disk) diskConfig {
	return diskConfig{diskID(d.Serial), d.Path, d.ReadOnly, d.Serial, d.Discard, "Raw"}
}

func newNIC(n vmm.NIC) netConfig {
	// A queue pair for each tap queue: receive and send.
	return netConfig{nicID(n.ID), n.MAC, n.MTU, 2 * len(n.Taps)}
}

func diskID(serial string) string { return "disk-" + serial }
func nicID(id string) string      { return "net-" + id }
