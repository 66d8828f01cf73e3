package guestimage

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// fakeModule is the smallest ELF file with a .modinfo section.
func fakeModule(info ...string) []byte {
	var modinfo []byte
	for _, e := range info {
		modinfo = append(append(modinfo, e...), 0)
	}
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const header = 64
	le := binary.LittleEndian
	b := make([]byte, header)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)    // relocatable
	le.PutUint16(b[18:], 0x3e) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(header+len(modinfo)+len(names)))
	le.PutUint16(b[52:], header)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	b = append(append(b, modinfo...), names...)
	section := func(name, kind uint32, off, size int) {
		s := make([]byte, 64)
		le.PutUint32(s[0:], name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(off))
		le.PutUint64(s[32:], uint64(size))
		b = append(b, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, header, len(modinfo))
	section(10, 3, header+len(modinfo), len(names))
	return b
}

func xzBytes(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := xz.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func fakeTree(t *testing.T) *kernelTree {
	return &kernelTree{
		Release: "6.12.0-test", Kernel: []byte("k"),
		Builtin: []byte("kernel/drivers/virtio/virtio_pci.ko\nkernel/lib/crc-base.ko\n"),
		Modules: map[string][]byte{
			"kernel/net/virtio_net.ko.xz":  xzBytes(t, fakeModule("name=virtio_net", "depends=net-failover,crc-base")),
			"kernel/net/net_failover.ko":   fakeModule("depends=failover"),
			"kernel/net/failover.ko":       fakeModule("depends="),
			"kernel/fs/overlay.ko":         fakeModule("softdep=pre: failover crypto-none post: virtio_net"),
			"kernel/md/dm-mod.ko":          fakeModule("license=GPL"),
			"kernel/bad/loop-a.ko":         fakeModule("depends=loop_b"),
			"kernel/bad/loop-b.ko":         fakeModule("depends=loop_a"),
			"kernel/bad/needs-missing.ko":  fakeModule("depends=nowhere"),
			"kernel/bad/not-elf.ko":        []byte("hello"),
			"kernel/bad/not-xz.ko.xz":      []byte("hello"),
			"kernel/bad/odd-packing.ko.7z": []byte("hello"),
		},
	}
}

func TestSelectModules(t *testing.T) {
	set, err := selectModules(fakeTree(t), []wantedModule{
		{Name: "virtio_pci", Boot: true}, {Name: "virtio_net", Boot: true}, {Name: "dm_mod"},
		{Name: "overlay", Boot: true}, {Name: "tsm", Optional: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantBoot := []string{"kernel/net/failover.ko", "kernel/net/net_failover.ko", "kernel/net/virtio_net.ko", "kernel/fs/overlay.ko"}
	if !slices.Equal(set.Boot, wantBoot) {
		t.Errorf("boot order is %v, want %v", set.Boot, wantBoot)
	}
	if !slices.Equal(set.Builtin, []string{"virtio_pci"}) {
		t.Errorf("built in: %v", set.Builtin)
	}
	if len(set.Files) != 5 || set.Files["kernel/md/dm-mod.ko"] == nil {
		t.Errorf("files: %v", set.paths())
	}
	wantDep := "kernel/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko\n"
	if dep := string(set.depFile()); !strings.Contains(dep, wantDep) || !strings.Contains(dep, "kernel/md/dm-mod.ko:\n") {
		t.Errorf("modules.dep:\n%s", dep)
	}
}

func TestSelectModulesRefuses(t *testing.T) {
	for name, want := range map[string]string{
		"absent":        "has no module absent",
		"loop_a":        "depend on each other",
		"needs_missing": "nowhere",
		"not_elf":       "reading module",
		"not_xz":        "unpacking module",
		"odd_packing":   "unknown compression",
	} {
		_, err := selectModules(fakeTree(t), []wantedModule{{Name: name}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, want)
		}
	}
}

func FuzzModuleDeps(f *testing.F) {
	f.Add(fakeModule("depends=a,b", "softdep=pre: c"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, _, _ = moduleDeps(data)
	})
}
