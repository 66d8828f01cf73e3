package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloister/cloister/host/vmm"
)

// AgentPort is the name of the virtio-serial port on which the guest serves its streams.
const AgentPort = "cloister.agent.0"

// bootFiles is what the command line needs to know beyond the configuration: the VM's private files, and the numbers that its
// inherited files have in QEMU; a number 0 is a file that there is not.
type bootFiles struct {
	vars, initdata string
	// smallFirmware is the image that starts the kernel without OVMF; "" is what QEMU has by itself, SeaBIOS.
	smallFirmware       string
	qmp, console, agent int
	tpm, share, vsock   int
	memory              int // the guest's memory, when it is a file of ours
	cid                 uint32
	nics                []nicFiles
	isBlockDevice       map[string]bool // by path, of ExtraDisks
	sev                 sevBits
	quoteSocket         bool // the host has a socket of the quote service for TDX
	paused              bool // the guest runs when it is told to
	incoming            bool // the state of the machine comes later, from a template
}

// nicFiles are the descriptors of a card's queues.
type nicFiles struct{ taps, vhosts []int }

// argList builds a command line.
type argList struct {
	c    *vmm.Config
	f    *bootFiles
	args []string
}

func (a *argList) add(args ...string) { a.args = append(a.args, args...) }

// device adds a virtio device in the form the machine's bus needs.
func (a *argList) device(name string, options ...string) {
	a.add("-device", strings.Join(append([]string{name + "-" + transport(a.c)}, options...), ","))
}

// transport is the end of a virtio device's name.
func transport(c *vmm.Config) string {
	switch {
	case c.Machine == vmm.MachineMicroVM:
		return "device" // on virtio-mmio
	case c.TEE != nil && c.TEE.Kind == kindSE:
		return "ccw"
	}
	return "pci"
}

// qemuArgs is the command line of the VM. That of a VM with OVMF and without hot plug is measured in part, and is kept as it is.
func qemuArgs(c *vmm.Config, f *bootFiles) ([]string, error) {
	a := &argList{c: c, f: f}
	cpu, accel, needs := "host", "kvm", ""
	if c.Accel == vmm.AccelTCG {
		// Five-level page tables cost emulation time and bring nothing to a small guest. CMPXCHG16B must stay off: with the
		// emulation of QEMU 7.2, kernels that use it (6.12 does, in its allocator) crash in about every second boot.
		// One thread for all virtual CPUs, because with several the emulation of QEMU 7.2 races with a kernel that patches its
		// own code (static keys), and the guest panics now and then.
		cpu, accel, needs = "max", fmt.Sprintf("tcg,thread=single,tb-size=%d", vmm.TranslatedMiB), ",la57=off,cx16=off"
	}
	if c.TEE != nil {
		cpu = teeCPU(c.TEE.Kind)
	}
	if c.CPUFeatures != "" {
		cpu += "," + c.CPUFeatures
	}
	cpu += needs // the last one counts
	a.add("-name", "guest="+c.Name, "-machine", a.machine(), "-accel", accel, "-cpu", cpu)
	a.size()
	a.add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
	if !bareMachine(c) {
		// Without sleep-to-memory the size of the memory stays out of PCR 0.
		a.add("-global", "ICH9-LPC.disable_s3=1")
	}
	a.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", f.qmp), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", f.console), "-serial", "chardev:console")
	if f.paused {
		a.add("-S")
	}
	if f.incoming {
		a.add("-incoming", "defer")
	}
	a.plugBridge() // before devices that take the next free slot
	if c.Vsock {
		a.device("vhost-vsock", fmt.Sprintf("vhostfd=%d", f.vsock), fmt.Sprintf("guest-cid=%d", f.cid))
	} else {
		a.device("virtio-serial", "max_ports=2")
		a.add("-chardev", fmt.Sprintf("socket,id=agent,fd=%d", f.agent),
			"-device", "virtserialport,chardev=agent,name="+AgentPort)
	}
	if c.TEE == nil { // a protected guest does not take its entropy from the host
		a.add("-object", "rng-random,id=rng0,filename=/dev/urandom")
		if whyNoDisks(c) == nil {
			a.device("virtio-rng", append([]string{"rng=rng0"}, lastPlace()...)...)
		} else {
			a.device("virtio-rng", "rng=rng0")
		}
	}
	if err := a.tee(); err != nil {
		return nil, err
	}
	a.network()
	a.shareAndBalloon()
	if c.TPM != nil {
		a.add("-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", f.tpm),
			"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	if err := a.drives(); err != nil {
		return nil, err
	}
	if c.Kernel != "" && !f.incoming { // what has started needs it no more
		a.add("-kernel", c.Kernel)
		if c.Initrd != "" {
			a.add("-initrd", c.Initrd)
		}
		a.add("-append", c.Cmdline)
	}
	return a.args, nil
}

// lastPlace puts a device at the last place of the bus for devices that come later.
func lastPlace() []string {
	return []string{"disable-legacy=on", "bus=" + plugBus, fmt.Sprintf("addr=%#x", plugSlots+1)}
}

// bareMachine says whether the machine has none of the PC's chips that q35 has.
func bareMachine(c *vmm.Config) bool {
	return c.Machine == vmm.MachineMicroVM || c.TEE != nil && (c.TEE.Kind == kindSE || c.TEE.Kind == kindCCA)
}

// machine is the value of -machine.
func (a *argList) machine() string {
	c := a.c
	m := "q35,smm=off,vmport=off,usb=off,sata=off,graphics=off,dump-guest-core=off"
	switch {
	case c.TEE != nil:
		m = teeMachine(c.TEE.Kind)
	case c.Machine == vmm.MachineMicroVM:
		// The guest's kernel finds virtio-mmio devices and processors through ACPI alone.
		m = "microvm,acpi=on,pcie=off,rtc=off,usb=off,graphics=off,dump-guest-core=off,x-option-roms=off,auto-kernel-cmdline=off,isa-serial=on"
		if c.Accel == vmm.AccelTCG {
			// Without KVM's clock the kernel needs the old timer to find out how fast the processor is.
			m += ",pit=on,pic=on"
		}
	case c.FirmwareCode != "":
		return m + ",pflash0=fwcode,pflash1=fwvars" + a.memoryLink()
	}
	return m + a.memoryLink()
}

func (a *argList) memoryLink() string {
	if a.f.memory == 0 && a.c.Share == nil && a.c.TEE == nil && !a.c.Hugepages {
		return ""
	}
	return ",memory-backend=mem"
}

// size adds processors and memory, and the firmware that is not in flash.
func (a *argList) size() {
	c := a.c
	smp := strconv.Itoa(c.VCPUs)
	if c.MaxVCPUs > c.VCPUs {
		smp = fmt.Sprintf("cpus=%d,maxcpus=%d", c.VCPUs, c.MaxVCPUs)
	}
	mem := strconv.Itoa(c.MemoryMiB) + "M"
	if room := pluggableMemory(c); room > 0 {
		mem += fmt.Sprintf(",slots=%d,maxmem=%dM", memorySlots, c.MemoryMiB+room)
	}
	a.add("-smp", smp, "-m", mem)
	switch {
	case a.f.memory != 0:
		a.add("-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=/proc/self/fd/%d,share=on", c.MemoryMiB, a.f.memory))
	case c.Hugepages:
		// All of it at the start: a page that is missing later would kill the VM while it runs.
		share := ""
		if c.Share != nil {
			share = ",share=on"
		}
		a.add("-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,prealloc=on%s", c.MemoryMiB, hugepages, share))
	case c.TEE != nil:
		a.add("-object", fmt.Sprintf("memory-backend-ram,id=mem,size=%dM", c.MemoryMiB))
	case c.Share != nil:
		a.add("-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dM,share=on", c.MemoryMiB))
	}
	switch {
	case c.TEE != nil && c.FirmwareCode != "":
		a.add("-bios", c.FirmwareCode)
	case c.TEE == nil && c.FirmwareCode == "" && a.f.smallFirmware != "":
		a.add("-bios", a.f.smallFirmware)
	}
}

// drives adds the firmware's flash and the disks; initdata is the first disk, unless the guest's root file system is.
func (a *argList) drives() error {
	c := a.c
	type drive struct {
		node, serial string
		disk         vmm.Disk
	}
	var drives []drive
	if c.FirmwareCode != "" && c.TEE == nil {
		drives = append(drives, drive{node: "fwcode", disk: vmm.Disk{Path: c.FirmwareCode, ReadOnly: true}},
			drive{node: "fwvars", disk: vmm.Disk{Path: a.f.vars}})
	}
	if c.RootImage != "" {
		drives = append(drives, drive{"root", vmm.RootImageSerial, vmm.Disk{Path: c.RootImage, ReadOnly: true}})
	}
	if c.InitdataImage != nil {
		drives = append(drives, drive{"initdata", "initdata", vmm.Disk{Path: a.f.initdata, ReadOnly: true}})
	}
	for i, d := range c.ExtraDisks {
		drives = append(drives, drive{fmt.Sprintf("disk%d", i), d.Serial, d})
	}
	for _, d := range drives {
		node, err := blockdev(d.node, d.disk, a.f.isBlockDevice[d.disk.Path])
		if err != nil {
			return err
		}
		spec, err := json.Marshal(node)
		if err != nil {
			return err
		}
		a.add("-blockdev", string(spec))
		if d.serial != "" {
			options := []string{"drive=" + d.node, "serial=" + d.serial}
			if d.node == "initdata" && c.TEE != nil && whyNoDisks(c) == nil {
				options = append(options, lastPlace()...)
			}
			a.device("virtio-blk", options...)
		}
	}
	return nil
}

// blockNode is an image or block device as QEMU's JSON says it, in which any file name can be said.
type blockNode struct {
	Driver   string    `json:"driver"`
	Node     string    `json:"node-name"`
	ReadOnly bool      `json:"read-only"`
	File     blockFile `json:"file"`
	Discard  string    `json:"discard,omitempty"`
}

type blockFile struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard,omitempty"`
	Locking  string `json:"locking,omitempty"`
}

func blockdev(node string, d vmm.Disk, device bool) (blockNode, error) {
	abs, err := filepath.Abs(d.Path)
	if err != nil {
		return blockNode{}, fmt.Errorf("resolving %s: %w", d.Path, err)
	}
	n := blockNode{"raw", node, d.ReadOnly, blockFile{"file", abs, d.ReadOnly, "", ""}, ""}
	if device {
		n.File.Driver = "host_device"
	}
	if d.Format == vmm.FormatVMDK {
		// Nobody writes to it or its extents, which other virtual machines read, too.
		n.Driver, n.File.Locking = "vmdk", "off"
	}
	if d.Discard {
		n.Discard, n.File.Discard = "unmap", "unmap"
	}
	return n, nil
}
