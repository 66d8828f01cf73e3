package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/vmmtest"
)

// plugVM is a VM without a guest that devices can be added to: its firmware runs and finds nothing to boot.
func plugVM(t *testing.T, edit func(*vmm.Config)) *VM {
	t.Helper()
	cfg := testConfig(t)
	cfg.TPM, cfg.MaxVCPUs, cfg.MaxMemoryMiB = nil, 3, 1024
	if edit != nil {
		edit(&cfg)
	}
	vm, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(t, vm) })
	return vm
}

// kill ends a VM without grace: there is no guest that could power off.
func kill(t *testing.T, vm *VM) {
	t.Helper()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := vm.Stop(now); err != nil {
		t.Error(err)
	}
}

// sparse makes an image file.
func sparse(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestResize(t *testing.T) {
	vm, ctx := plugVM(t, nil), testContext(t)
	steps := []struct {
		vcpus, mib        int
		wantCPUs, wantMiB int
		fault             string
	}{
		{1, 256, 1, 256, ""},
		{2, 300, 2, 384, ""},
		{1, 128, 2, 384, ""},
		{3, 1024, 3, 1024, ""},
		{4, 1024, 3, 1024, "at most 3 processors"},
		{3, 1025, 3, 1024, "at most 1024 MiB"},
	}
	for _, s := range steps {
		cpus, mib, err := vm.Resize(ctx, s.vcpus, s.mib)
		if fmt.Sprint(err) == "<nil>" != (s.fault == "") || err != nil && !strings.Contains(err.Error(), s.fault) {
			t.Errorf("resizing to %d and %d MiB: %v", s.vcpus, s.mib, err)
		}
		if cpus != s.wantCPUs || mib != s.wantMiB {
			t.Errorf("resizing to %d and %d MiB gave %d and %d MiB", s.vcpus, s.mib, cpus, mib)
		}
	}
}

func TestAddDiskWithoutGuest(t *testing.T) {
	vm, ctx := plugVM(t, nil), testContext(t)
	image := sparse(t, "a,b=c.img", 1<<20)
	place, err := vm.AddDisk(ctx, vmm.Disk{Path: image, Serial: "first", Discard: true})
	if err != nil {
		t.Fatal(err)
	}
	if place != (vmm.Place{Driver: "blk", Address: "02/01"}) {
		t.Errorf("place %+v", place)
	}
	var full string // what becomes of a write that the host has no room for
	if err := vm.qmp.run(ctx, "qom-get", map[string]string{"path": vm.plug.find("disk", "first").device, "property": "werror"}, &full); err != nil || full != "report" {
		t.Errorf("a full host: %q, %v", full, err)
	}
	for what, d := range map[string]vmm.Disk{
		"is there already":    {Path: image, Serial: "first"},
		"no such file":        {Path: image + "x", Serial: "other"},
		"neither a file nor":  {Path: t.TempDir(), Serial: "other"},
		"a path and a serial": {Path: image, Serial: "a,b"},
		"since the start":     {Path: image, Serial: "data"},
		"lock":                {Path: image, Serial: "same-file"},
	} {
		if what == "since the start" {
			vm.atStart["disk data"] = true
		}
		if _, err := vm.AddDisk(ctx, d); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("expected %q, got %v", what, err)
		}
	}
	// A refused disk leaves its place to the next one.
	if place, err = vm.AddDisk(ctx, vmm.Disk{Path: sparse(t, "b", 1<<20), Serial: "second", ReadOnly: true}); err != nil || place.Address != "02/02" {
		t.Errorf("second disk: %+v, %v", place, err)
	}
	// Firmware does not let go of a device: the wait ends with the context.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := vm.RemoveDisk(short, "first"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removing without a guest: %v", err)
	}
	if err := vm.RemoveDisk(ctx, "third"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := vm.RemoveDisk(ctx, "data"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("removing a disk of the start: %v", err)
	}
}

func TestAllPlacesTaken(t *testing.T) {
	vm, ctx := plugVM(t, nil), testContext(t)
	image := sparse(t, "disk", 1<<20)
	for i := 1; i <= plugSlots; i++ {
		place, err := vm.AddDisk(ctx, vmm.Disk{Path: image, Serial: fmt.Sprint("d", i), ReadOnly: true})
		if want := fmt.Sprintf("02/%02x", i); err != nil || place.Address != want {
			t.Fatalf("disk %d: %+v, %v", i, place, err)
		}
	}
	if _, err := vm.AddDisk(ctx, vmm.Disk{Path: image, Serial: "more", ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "all 30 places") {
		t.Errorf("one more disk: %v", err)
	}
}

func TestPlugRefused(t *testing.T) {
	vm, ctx := plugVM(t, func(c *vmm.Config) { c.MaxVCPUs, c.MaxMemoryMiB = 0, 0 }), testContext(t)
	_, err := vm.AddDisk(ctx, vmm.Disk{Path: "/dev/null", Serial: "x"})
	_, nicErr := vm.AddNIC(ctx, vmm.NIC{ID: "eth0"})
	cpus, mib, sizeErr := vm.Resize(ctx, 2, 512)
	for what, err := range map[string]error{
		"AddDisk": err, "AddNIC": nicErr, "Resize": sizeErr, "RemoveDisk": vm.RemoveDisk(ctx, "x"), "RemoveNIC": vm.RemoveNIC(ctx, "eth0"),
	} {
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "measured") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if cpus != 1 || mib != 256 {
		t.Errorf("it has %d processors and %d MiB", cpus, mib)
	}
}

func TestAddNICWithoutGuest(t *testing.T) {
	cold := vmmtest.Taps(t, "h1cold", 1)
	vm, ctx := plugVM(t, func(c *vmm.Config) { c.NICs = []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Taps: cold, MTU: 1400}} }), testContext(t)
	for i, queues := range []int{1, 2} {
		n := vmm.NIC{ID: fmt.Sprint("hot", queues), MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), Taps: vmmtest.Taps(t, fmt.Sprint("h1hot", queues), queues), MTU: 1450}
		place, err := vm.AddNIC(ctx, n)
		if want := fmt.Sprintf("02/%02x", i+1); err != nil || place.Address != want {
			t.Errorf("card with %d queues: %+v, %v", queues, place, err)
		}
		if _, err := n.Taps[0].Stat(); err != nil {
			t.Errorf("the caller's file was closed: %v", err)
		}
	}
	// Something that is no tap.
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	before := openFiles(t, vm.PID())
	for range 3 {
		if _, err := vm.AddNIC(ctx, vmm.NIC{ID: "bad", MAC: "02:00:00:00:01:07", Taps: []*os.File{pr}}); err == nil || !strings.Contains(err.Error(), "netdev_add") {
			t.Errorf("a pipe as a tap: %v", err)
		}
	}
	if after := openFiles(t, vm.PID()); after != before {
		t.Errorf("QEMU has %d open files, had %d before refused cards", after, before)
	}
	if err := vm.RemoveNIC(ctx, "eth0"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("removing a card of the start: %v", err)
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
