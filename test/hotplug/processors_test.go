package hotplug

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestProcessors adds processors to a machine whose kernel keeps places for them.
//
// Under emulation Linux 6.12 does not. QEMU's ACPI tables (those of 7.2 and 10.0 alike) are of a version before 6.3, where a processor that
// is "not enabled" may be a place for one or a mistake of the firmware. Linux takes it for a place only in a virtual machine of a
// hypervisor that it knows, such as KVM (acpi_is_processor_usable in arch/x86/kernel/acpi/boot.c), and QEMU's emulation is none that
// it knows. So this test gives the kernel the machine's own tables in version 6.3, which say what is meant: from there on all is the same
// as with KVM, from QEMU's event to the processor that is online.
func TestProcessors(t *testing.T) {
	image := probeImage(t)
	cfg := config(t, image, "serve")
	cfg.MaxVCPUs = 3
	g := boot(t, cfg)
	tables := map[string][]byte{}
	for _, name := range []string{"APIC", "FACP"} {
		table, err := hex.DecodeString(g.line("table " + name))
		if err != nil || len(table) < 132 || string(table[:4]) != name {
			t.Fatalf("the machine's table %s: %x, %v", name, table, err)
		}
		tables[name] = table
	}
	if err := g.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	initrd, err := os.ReadFile(cfg.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	cfg = config(t, image, "serve")
	cfg.MaxVCPUs = 3
	cfg.Initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(cfg.Initrd, append(tableArchive(withPlaces(t, tables)), initrd...), 0o600); err != nil {
		t.Fatal(err)
	}
	g = boot(t, cfg)
	ctx := testContext(t)
	if s := g.ask("state"); s.CPUs != 1 {
		t.Errorf("at the start: %+v", s)
	}
	for _, n := range []int{2, 3} {
		cpus, _, err := g.Resize(ctx, n, 256)
		if err != nil || cpus != n {
			t.Fatalf("resizing gave %d processors, %v", cpus, err)
		}
		if s := g.ask("size %d 256", n); s.CPUs != n {
			t.Errorf("with %d processors the guest has %d", n, s.CPUs)
		}
	}
}

// withPlaces are the tables in version 6.3 of ACPI, in which processors that are not there are said to come: the fixed description (FACP,
// 5.2.9) says the version, that of interrupt controllers (APIC, 5.2.12) the places.
func withPlaces(t *testing.T, tables map[string][]byte) map[string][]byte {
	t.Helper()
	const (
		revision, minor = 8, 131
		entries         = 44
		localAPIC       = 0
		enabled, online = 1, 2 // flags of a local APIC
	)
	fixed, controllers := bytes.Clone(tables["FACP"]), bytes.Clone(tables["APIC"])
	fixed[revision], fixed[minor] = 6, 3
	places := 0
	for at := entries; at+2 <= len(controllers) && controllers[at+1] >= 2; at += int(controllers[at+1]) {
		if controllers[at] != localAPIC || at+8 > len(controllers) {
			continue
		}
		if flags := controllers[at+4:]; flags[0]&enabled == 0 {
			flags[0] |= online
			places++
		}
	}
	if places != 2 {
		t.Fatalf("the table has %d places for processors, expected 2: %x", places, controllers)
	}
	return map[string][]byte{"FACP": newer(fixed), "APIC": newer(controllers)}
}

// newer gives a table a higher revision of its maker, so that a kernel prefers it to the machine's, and its checksum.
func newer(table []byte) []byte {
	const sum, makers = 9, 24
	binary.LittleEndian.PutUint32(table[makers:], binary.LittleEndian.Uint32(table[makers:])+1)
	table[sum] = 0
	var total byte
	for _, b := range table {
		total += b
	}
	table[sum] = -total
	return table
}

// tableArchive is a cpio archive in which the kernel finds tables. It comes before the others and is not compressed.
func tableArchive(tables map[string][]byte) []byte {
	var b bytes.Buffer
	add := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for name, table := range tables {
		add("kernel/firmware/acpi/"+name+".aml", 0o100644, table)
	}
	add("TRAILER!!!", 0, nil)
	b.Write(make([]byte, -b.Len()&511))
	return b.Bytes()
}
