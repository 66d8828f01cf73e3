package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/vmm"
)

// TestLateDisks looks for the bus of disks that come later, and for what keeps it open, in machines that have nothing else plugged.
func TestLateDisks(t *testing.T) {
	base := vmm.Config{Name: "m", Dir: "/run/m", Kernel: "/k", FirmwareCode: "/code", FirmwareVars: "/vars", VCPUs: 1, MemoryMiB: 512, Accel: vmm.AccelKVM,
		InitdataImage: make([]byte, 512)}
	for name, c := range map[string]struct {
		edit func(*vmm.Config)
		want string // the device at the bus's last place; "" when there is no bus
	}{
		"measured":             {func(c *vmm.Config) { c.LateDisks = true }, "virtio-rng-pci"},
		"measured, not asked":  {func(*vmm.Config) {}, ""},
		"SNP":                  {func(c *vmm.Config) { c.LateDisks, c.TEE = true, &vmm.TEE{Kind: kindSNP} }, "virtio-blk-pci,drive=initdata"},
		"TDX":                  {func(c *vmm.Config) { c.LateDisks, c.TEE = true, &vmm.TEE{Kind: kindTDX} }, "virtio-blk-pci,drive=initdata"},
		"SNP without initdata": {func(c *vmm.Config) { c.LateDisks, c.TEE, c.InitdataImage = true, &vmm.TEE{Kind: kindSNP}, nil }, ""},
		"SNP, not asked":       {func(c *vmm.Config) { c.TEE = &vmm.TEE{Kind: kindSNP} }, ""},
		"CCA":                  {func(c *vmm.Config) { c.LateDisks, c.TEE = true, &vmm.TEE{Kind: kindCCA} }, ""},
		"SE": {func(c *vmm.Config) {
			c.LateDisks, c.TEE, c.FirmwareCode, c.FirmwareVars = true, &vmm.TEE{Kind: kindSE}, "", ""
		}, ""},
	} {
		cfg := base
		c.edit(&cfg)
		args, err := qemuArgs(&cfg, &bootFiles{vars: "/v", initdata: "/i"})
		if err != nil {
			t.Fatal(err)
		}
		bridge := slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "pci-bridge,") })
		last := slices.IndexFunc(args, func(a string) bool { return strings.HasSuffix(a, "bus=plug,addr=0x1f") })
		if bridge != (c.want != "") || (last >= 0) != bridge || bridge && !strings.HasPrefix(args[last], c.want) {
			t.Errorf("%s: bridge %v, %q", name, bridge, args)
		}
		if why := whyNoDisks(&cfg); (why == nil) != bridge {
			t.Errorf("%s: %v", name, why)
		}
	}
}
