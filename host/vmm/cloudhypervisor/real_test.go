package cloudhypervisor

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
)

// TestReal drives the real program, where it is installed and has KVM. Its guest only sleeps.
func TestReal(t *testing.T) {
	program, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		needs.Optional(t, "cloud-hypervisor is not installed, which Debian 12 does not have")
	}
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		needs.Optional(t, "no KVM here: %v", err)
	}
	cfg, ctx := testConfig(t), testContext(t)
	cfg.Program, cfg.MaxVCPUs, cfg.MaxMemoryMiB, cfg.Balloon = program, 4, 1024, true
	cfg.InitdataImage = bytes.Repeat([]byte("initdata"), 64)
	if err := os.WriteFile(cfg.Kernel, sleepingKernel(), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := vmm.Disk{Path: filepath.Join(filepath.Dir(cfg.Dir), "disk"), Serial: "vol-1"}
	if err := os.WriteFile(disk.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tap := makeTap(t)
	cfg.NICs = []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Taps: []*os.File{tap}, MTU: 1400}}
	v := start(t, cfg)
	at, err := v.AddDisk(ctx, disk)
	if err != nil || len(at.Address) != 2 {
		t.Errorf("disk: %+v, %v", at, err)
	}
	if _, err := v.AddDisk(ctx, disk); err == nil || !strings.Contains(err.Error(), "not unique") {
		t.Errorf("the same disk again: %v", err)
	}
	if c, m, err := v.Resize(ctx, 2, 300); c != 2 || m != 384 || err != nil {
		t.Errorf("resized to %d, %d, %v", c, m, err)
	}
	if err := v.RemoveDisk(ctx, "vol-1"); err != nil {
		t.Error(err)
	}
	if err := v.RemoveDisk(ctx, "never-there"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that was never there: %v", err)
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	if err := v.Stop(now); err != nil || v.Err() != nil {
		t.Errorf("stopped: %v, %v", err, v.Err())
	}
	gone(t, cfg, 0)
}

// makeTap opens a tap as pods' networks have it.
func makeTap(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		needs.Missing(t, "taps: %v", err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { f.Close() })
	req, err := unix.NewIfreq("chtest%d")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		needs.Missing(t, "the right to make taps: %v", err)
	}
	return f
}

// sleepingKernel is a kernel with a PVH entry, at which it halts the processor for ever.
func sleepingKernel() []byte {
	const entry, headers, note, code = 0x100000, 64 + 2*56, 0x100, 0x200
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1}, Type: uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: 1, Entry: entry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	})
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 5, Off: code, Vaddr: entry, Paddr: entry, Filesz: 4, Memsz: 4096, Align: 4096})
	put(elf.Prog64{Type: uint32(elf.PT_NOTE), Flags: 4, Off: note, Filesz: 20, Memsz: 20, Align: 4})
	b.Write(make([]byte, note-headers))
	put([3]uint32{4, 4, 18}) // lengths of name and value; 18 is the physical address of the 32-bit entry
	b.WriteString("Xen\x00")
	put(uint32(entry))
	b.Write(make([]byte, code-note-20))
	b.Write([]byte{0xfa, 0xf4, 0xeb, 0xfd}) // cli; hlt; jump back to hlt
	return b.Bytes()
}
