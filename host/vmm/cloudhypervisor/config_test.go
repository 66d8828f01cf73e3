package cloudhypervisor

import (
	"errors"
	"testing"

	"github.com/cloister/cloister/host/vmm"
)

// TestDisksAndMemory: the disk with the guest's root is the first one, huge pages are taken at the start, and what cannot be is refused.
func TestDisksAndMemory(t *testing.T) {
	c := vmm.Config{
		Name: "t", Dir: "/r/vm", Kernel: "/k", VCPUs: 1, MemoryMiB: 256, Accel: vmm.AccelKVM, Hugepages: true, RootImage: "/image",
		ExtraDisks: []vmm.Disk{{Path: "/d", Serial: "d"}},
	}
	if err := errors.Join(c.Validate(), check(&c)); err != nil {
		t.Fatal(err)
	}
	v := newConfig(&c, "/r/vm/vsock", "/r/vm/initdata.img", "/dev/fd/5")
	if !v.Memory.Hugepages || !v.Memory.Prefault || len(v.Disks) != 3 || v.Disks[0].Path != "/image" || !v.Disks[0].ReadOnly ||
		v.Disks[1].Serial != "initdata" || v.Disks[2].Path != "/d" {
		t.Errorf("%+v", v)
	}
	c.CPUFeatures = "pmu=off"
	if err := check(&c); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("processor features: %v", err)
	}
	c.CPUFeatures = "+la57"
	if err := c.Validate(); err == nil {
		t.Error("features of another form were taken")
	}
}
