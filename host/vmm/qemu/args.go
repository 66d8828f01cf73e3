package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/cloister/cloister/host/vmm"
)

// File descriptors that QEMU inherits, in the order in which Start passes them.
const (
	fdQMP = 3 + iota
	fdConsole
	fdAgent
	fdTPM
)

// AgentPort is the name of the virtio-serial port on which the guest serves its streams.
const AgentPort = "cloister.agent.0"

// qemuArgs is the command line of the VM. vars and initdata are the VM's private files.
func qemuArgs(c *vmm.Config, vars, initdata string) ([]string, error) {
	machine := "q35,smm=off,vmport=off,usb=off,sata=off,graphics=off,dump-guest-core=off,pflash0=fwcode,pflash1=fwvars"
	cpu, accel := "host", "kvm"
	if c.Accel == vmm.AccelTCG {
		// Five-level page tables cost emulation time and bring nothing to a small guest. CMPXCHG16B must stay off: with the
		// emulation of QEMU 7.2, kernels that use it (6.12 does, in its allocator) crash in about every second boot.
		// One thread for all virtual CPUs, because with several the emulation of QEMU 7.2 races with a kernel that patches its
		// own code (static keys), and the guest panics now and then.
		cpu, accel = "max,la57=off,cx16=off", "tcg,thread=single"
	}
	a := []string{
		"-name", "guest=" + c.Name,
		"-machine", machine, "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(c.VCPUs), "-m", strconv.Itoa(c.MemoryMiB) + "M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// Without sleep-to-memory the size of the memory stays out of PCR 0.
		"-global", "ICH9-LPC.disable_s3=1",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-serial", "chardev:console",
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent),
		"-device", "virtserialport,chardev=agent,name=" + AgentPort,
		"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
	}
	if c.UserNetwork {
		a = append(a, "-netdev", "user,id=net0,ipv6=off", "-device", "virtio-net-pci,netdev=net0,romfile=,mac="+vmm.GuestMAC)
	}
	if c.TPM != nil {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", fdTPM),
			"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	}
	drives := []struct {
		node, path, serial string
		readOnly           bool
	}{{"fwcode", c.FirmwareCode, "", true}, {"fwvars", vars, "", false}}
	if c.InitdataImage != nil {
		drives = append(drives, struct {
			node, path, serial string
			readOnly           bool
		}{"initdata", initdata, "initdata", true})
	}
	for i, d := range c.ExtraDisks {
		drives = append(drives, struct {
			node, path, serial string
			readOnly           bool
		}{fmt.Sprintf("disk%d", i), d.Path, d.Serial, d.ReadOnly})
	}
	for _, d := range drives {
		spec, err := blockdev(d.node, d.path, d.readOnly)
		if err != nil {
			return nil, err
		}
		a = append(a, "-blockdev", spec)
		if d.serial != "" {
			a = append(a, "-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", d.node, d.serial))
		}
	}
	if c.Kernel != "" {
		a = append(a, "-kernel", c.Kernel)
		if c.Initrd != "" {
			a = append(a, "-initrd", c.Initrd)
		}
		a = append(a, "-append", c.Cmdline)
	}
	return a, nil
}

// blockdev describes a raw image as JSON, in which any file name can be said.
func blockdev(node, path string, readOnly bool) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", path, err)
	}
	type file struct {
		Driver   string `json:"driver"`
		Filename string `json:"filename"`
		ReadOnly bool   `json:"read-only"`
	}
	b, err := json.Marshal(struct {
		Driver   string `json:"driver"`
		Node     string `json:"node-name"`
		ReadOnly bool   `json:"read-only"`
		File     file   `json:"file"`
	}{"raw", node, readOnly, file{"file", abs, readOnly}})
	return string(b), err
}
