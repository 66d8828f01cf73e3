package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
)

// inheritance is the files that QEMU gets, in the order of their numbers there.
type inheritance struct {
	files []*os.File
	owned []*os.File // those to close here once QEMU has them
}

// lend adds a file that stays the caller's, and returns its number in QEMU.
func (in *inheritance) lend(f *os.File) int {
	in.files = append(in.files, f)
	return 2 + len(in.files) // after standard input, output and error
}

// own adds a file that is closed here once QEMU has it.
func (in *inheritance) own(f *os.File) int {
	in.owned = append(in.owned, f)
	return in.lend(f)
}

func (in *inheritance) close() {
	for _, f := range in.owned {
		f.Close()
	}
	in.owned = nil
}

// channelEnds are our ends of the channels; agent is nil with vsock.
type channelEnds struct{ qmp, console, agent net.Conn }

// channels makes the channels to QEMU. Our ends stay in v.
func (v *VM) channels(cfg *vmm.Config, boot *bootFiles, in *inheritance) (*channelEnds, error) {
	channel := func(name string, number *int) (net.Conn, error) {
		conn, other, err := socketPair(name)
		if err != nil {
			return nil, err
		}
		v.conns = append(v.conns, conn)
		*number = in.own(other)
		return conn, nil
	}
	var ch channelEnds
	var err error
	if ch.qmp, err = channel("qmp", &boot.qmp); err != nil {
		return nil, err
	}
	if ch.console, err = channel("console", &boot.console); err != nil {
		return nil, err
	}
	if cfg.Vsock {
		return &ch, nil
	}
	if ch.agent, err = channel("agent", &boot.agent); err != nil {
		return nil, err
	}
	return &ch, nil
}

// outside opens what the VM needs of the host besides its own files.
func (v *VM) outside(ctx context.Context, cfg *vmm.Config, boot *bootFiles, in *inheritance) error {
	if cfg.Vsock {
		dev, cid, err := claimCID(ctx)
		if err != nil {
			return err
		}
		boot.vsock, boot.cid = in.own(dev), cid
		v.vsock = newVsockPort(cid)
	}
	if cfg.Share != nil {
		f, err := connectShare(ctx, cfg.Share)
		if err != nil {
			return err
		}
		boot.share = in.own(f)
	}
	for _, n := range cfg.NICs {
		var f nicFiles
		for _, tap := range n.Taps {
			f.taps = append(f.taps, in.lend(tap))
		}
		for _, vhost := range n.Vhosts {
			f.vhosts = append(f.vhosts, in.lend(vhost))
		}
		boot.nics = append(boot.nics, f)
	}
	return nil
}

// prepareFiles makes the VM's private files and looks at those it will use.
func prepareFiles(cfg *vmm.Config) (*bootFiles, error) {
	boot := &bootFiles{isBlockDevice: map[string]bool{}}
	if cfg.FirmwareVars != "" && cfg.TEE == nil {
		boot.vars = filepath.Join(cfg.Dir, "vars.fd")
		b, err := os.ReadFile(cfg.FirmwareVars)
		if err != nil {
			return nil, fmt.Errorf("reading the firmware variables: %w", err)
		}
		if err := os.WriteFile(boot.vars, b, 0o600); err != nil {
			return nil, fmt.Errorf("copying the firmware variables: %w", err)
		}
	}
	for _, f := range []struct{ what, path string }{{"firmware", cfg.FirmwareCode}, {"kernel", cfg.Kernel}, {"initrd", cfg.Initrd}} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return nil, fmt.Errorf("looking for the %s of the guest: %w (hint: `cloister check` names all files that are missing)", f.what, err)
		}
	}
	disks := make([]string, 0, 1+len(cfg.ExtraDisks))
	if cfg.RootImage != "" {
		disks = append(disks, cfg.RootImage)
	}
	for _, d := range cfg.ExtraDisks {
		disks = append(disks, d.Path)
	}
	for _, d := range disks {
		device, err := isBlockDevice(d)
		if err != nil {
			return nil, err
		}
		boot.isBlockDevice[d] = device
	}
	if cfg.Hugepages {
		if err := checkHugepages(hugepages, cfg.MemoryMiB); err != nil {
			return nil, err
		}
	}
	if cfg.FirmwareCode == "" && cfg.TEE == nil {
		boot.smallFirmware = smallFirmware(cfg.Program)
	}
	if cfg.TEE != nil {
		_, err := os.Stat(quoteSocket)
		boot.quoteSocket = err == nil
		if cfg.TEE.Kind == kindSNP {
			if boot.sev, err = hostSEVBits(); err != nil {
				return nil, fmt.Errorf("hardware protection %s: %w", kindSNP, err)
			}
		}
	}
	if cfg.InitdataImage == nil {
		return boot, nil
	}
	boot.initdata = filepath.Join(cfg.Dir, "initdata.img")
	if err := os.WriteFile(boot.initdata, cfg.InitdataImage, 0o600); err != nil {
		return nil, fmt.Errorf("writing the initdata disk: %w", err)
	}
	return boot, nil
}

// smallFirmware finds qboot, which starts a kernel in a fraction of SeaBIOS's time; it comes with QEMU. Without it QEMU takes SeaBIOS.
func smallFirmware(program string) string {
	dirs := []string{"/usr/share/qemu", "/usr/local/share/qemu"}
	if real, err := filepath.EvalSymlinks(program); err == nil {
		dirs = append([]string{filepath.Join(filepath.Dir(real), "../share/qemu")}, dirs...)
	}
	for _, d := range dirs {
		name := filepath.Join(d, "qboot.rom")
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			return name
		}
	}
	return ""
}

// check reports what QEMU cannot do of a valid configuration.
func check(c *vmm.Config) error {
	var errs []error
	errs = append(errs, checkTEE(c))
	if c.Machine == vmm.MachineMicroVM {
		if c.FirmwareCode != "" || c.TPM != nil {
			errs = append(errs, fmt.Errorf("machine type %s has no firmware to measure and no TPM", c.Machine))
		}
		if c.MaxVCPUs > c.VCPUs || c.MaxMemoryMiB > c.MemoryMiB {
			errs = append(errs, fmt.Errorf("machine type %s has no hot plug", c.Machine))
		}
	}
	if c.Share != nil {
		if l := len(c.Share.Tag); l == 0 || l > 36 || !plainName(c.Share.Tag) {
			errs = append(errs, fmt.Errorf("tag %q of the shared directory: expected 1 to 36 letters, digits, dots, dashes and underscores", c.Share.Tag))
		}
		if !filepath.IsAbs(c.Share.Socket) {
			errs = append(errs, fmt.Errorf("socket %q of the shared directory is not an absolute path", c.Share.Socket))
		}
	}
	seen := map[string]bool{"disk initdata": true, "disk " + vmm.RootImageSerial: c.RootImage != ""}
	once := func(what string) {
		if seen[what] {
			errs = append(errs, fmt.Errorf("%s is there twice", what))
		}
		seen[what] = true
	}
	for _, d := range c.ExtraDisks {
		once("disk " + d.Serial)
	}
	for _, n := range c.NICs {
		errs = append(errs, checkNIC(n))
		once("card " + n.ID)
	}
	return errors.Join(errs...)
}

// coldDevices names the disks and cards that a VM starts with.
func coldDevices(c *vmm.Config) map[string]bool {
	m := map[string]bool{"disk initdata": c.InitdataImage != nil, "disk " + vmm.RootImageSerial: c.RootImage != ""}
	for _, d := range c.ExtraDisks {
		m["disk "+d.Serial] = true
	}
	for _, n := range c.NICs {
		m["card "+n.ID] = true
	}
	return m
}

func checkDisk(d vmm.Disk) error {
	if d.Path == "" || d.Serial == "" || len(d.Serial) > 20 || !plainName(d.Serial) || d.Serial == "initdata" {
		return fmt.Errorf("disk %q: a path and a serial of up to 20 letters, digits, dots and dashes are needed", d.Serial)
	}
	return nil
}

// maxQueues is more queues than a guest has processors for.
const maxQueues = 256

func checkNIC(n vmm.NIC) error {
	var errs []error
	if n.ID == "" || len(n.ID) > 64 || !plainName(n.ID) {
		errs = append(errs, fmt.Errorf("network card %q: expected a name of up to 64 letters, digits, dots, dashes and underscores", n.ID))
	}
	if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		errs = append(errs, fmt.Errorf("network card %s: %q is not the hardware address of a card", n.ID, n.MAC))
	}
	if len(n.Taps) == 0 || len(n.Taps) > maxQueues || len(n.Vhosts) != 0 && len(n.Vhosts) != len(n.Taps) {
		errs = append(errs, fmt.Errorf("network card %s: %d queues with %d of vhost-net: expected 1 to %d, with as many or none",
			n.ID, len(n.Taps), len(n.Vhosts), maxQueues))
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		errs = append(errs, fmt.Errorf("network card %s: MTU %d: expected 0, or 68 to 65535", n.ID, n.MTU))
	}
	return errors.Join(errs...)
}

// plainName says whether a text can stand in QEMU's options as it is.
func plainName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return false
		}
	}
	return true
}

// socketPair returns one connected end as a connection and the other as a file for a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making channel %s: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making channel %s: %w", name, err)
	}
	return conn, theirs, nil
}
