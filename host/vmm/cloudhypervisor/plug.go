package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"regexp"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
)

// memoryBlock is the size in which a guest's kernel takes new memory, in MiB.
const memoryBlock = 128

// bdf is the place of a device on the guest's first PCI bus.
var bdf = regexp.MustCompile(`^0000:00:([01][0-9a-f])\.0$`)

// AddDisk adds a disk to the running VM.
func (v *VM) AddDisk(ctx context.Context, d vmm.Disk) (vmm.Place, error) {
	if err := v.pluggable(); err != nil && !(d.Late() && v.cfg.LateDisks) {
		return vmm.Place{}, fmt.Errorf("adding disk %s: %w", d.Serial, err)
	}
	if d.Format != vmm.FormatRaw {
		return vmm.Place{}, fmt.Errorf("adding disk %s: format %s: %w", d.Serial, d.Format, errors.ErrUnsupported)
	}
	if err := d.Validate(); err != nil {
		return vmm.Place{}, fmt.Errorf("adding disk: %w", err)
	}
	if _, err := os.Stat(d.Path); err != nil {
		return vmm.Place{}, fmt.Errorf("adding disk %s: %w", d.Serial, err)
	}
	var at pciInfo
	if err := v.api.put(ctx, "vm.add-disk", newDisk(d), &at); err != nil {
		return vmm.Place{}, fmt.Errorf("adding disk %s: %w", d.Serial, err)
	}
	return place(at)
}

// RemoveDisk asks the guest to let go of a disk, which has to be unmounted there. The guest decides when it does.
func (v *VM) RemoveDisk(ctx context.Context, serial string) error {
	if err := v.remove(ctx, diskID(serial)); err != nil {
		return fmt.Errorf("removing disk %s: %w", serial, err)
	}
	return nil
}

// AddNIC adds a network card to the running VM.
func (v *VM) AddNIC(ctx context.Context, n vmm.NIC) (vmm.Place, error) {
	err := v.pluggable()
	if err == nil && len(n.Taps) == 0 {
		err = errors.New("it has no tap")
	}
	var at pciInfo
	if err == nil {
		err = v.api.put(ctx, "vm.add-net", newNIC(n), &at, n.Taps...)
	}
	if err != nil {
		return vmm.Place{}, fmt.Errorf("adding network card %s: %w", n.ID, err)
	}
	return place(at)
}

// RemoveNIC asks the guest to let go of a network card. The guest decides when it does.
func (v *VM) RemoveNIC(ctx context.Context, id string) error {
	if err := v.remove(ctx, nicID(id)); err != nil {
		return fmt.Errorf("removing network card %s: %w", id, err)
	}
	return nil
}

func (v *VM) remove(ctx context.Context, id string) error {
	err := v.api.put(ctx, "vm.remove-device", struct {
		ID string `json:"id"`
	}{id}, nil)
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("there is no such device: %w", fs.ErrNotExist) // also when it has gone
	}
	return err
}

// pluggable says why devices cannot be added.
func (v *VM) pluggable() error {
	if v.cfg.TEE != nil {
		return fmt.Errorf("a confidential VM has no hot plug: %w", errors.ErrUnsupported)
	}
	return nil
}

// place checks what the monitor says of a device's place. All devices are on the root bus, so that the slot is the whole path.
func place(at pciInfo) (vmm.Place, error) {
	m := bdf.FindStringSubmatch(at.BDF)
	if m == nil {
		return vmm.Place{}, fmt.Errorf("the monitor put the device at %.40q, expected a slot of the first bus", process.Printable(at.BDF))
	}
	return vmm.Place{Driver: "blk", Address: m[1]}, nil
}

// Resize brings the VM to at least this many processors and this much memory (MiB) and returns what it has then.
func (v *VM) Resize(ctx context.Context, vcpus, memoryMiB int) (haveVCPUs, haveMemoryMiB int, err error) {
	v.resize.Lock()
	defer v.resize.Unlock()
	haveVCPUs, haveMemoryMiB, err = v.size(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("resizing: %w", err)
	}
	var want struct {
		VCPUs int   `json:"desired_vcpus,omitempty"`
		RAM   int64 `json:"desired_ram,omitempty"` // bytes
	}
	var errs []error
	if vcpus > haveVCPUs {
		want.VCPUs = vcpus
		errs = append(errs, room("virtual CPUs", vcpus, v.cfg.MaxVCPUs))
	}
	if memoryMiB > haveMemoryMiB {
		blocks := (memoryMiB - v.cfg.MemoryMiB + memoryBlock - 1) / memoryBlock
		target := v.cfg.MemoryMiB + blocks*memoryBlock
		want.RAM = int64(target) << 20
		errs = append(errs, room("MiB of memory", target, v.cfg.MaxMemoryMiB))
	}
	if err := errors.Join(errs...); err != nil {
		return haveVCPUs, haveMemoryMiB, fmt.Errorf("resizing: %w", err)
	}
	if want.VCPUs == 0 && want.RAM == 0 {
		return haveVCPUs, haveMemoryMiB, nil
	}
	if err := v.api.put(ctx, "vm.resize", want, nil); err != nil {
		return haveVCPUs, haveMemoryMiB, fmt.Errorf("resizing: %w", err)
	}
	if haveVCPUs, haveMemoryMiB, err = v.size(ctx); err != nil {
		return 0, 0, fmt.Errorf("resizing: %w", err)
	}
	return haveVCPUs, haveMemoryMiB, nil
}

// room refuses more than the VM was given room for.
func room(what string, want, most int) error {
	switch {
	case want <= most:
		return nil
	case most == 0:
		return fmt.Errorf("%d %s: this VM has a fixed size: %w", want, what, errors.ErrUnsupported)
	default:
		return fmt.Errorf("%d %s: this VM can have %d at most", want, what, most)
	}
}

// size asks what the VM has.
func (v *VM) size(ctx context.Context) (vcpus, memoryMiB int, err error) {
	var info vmInfo
	if err := v.api.get(ctx, "vm.info", &info); err != nil {
		return 0, 0, err
	}
	vcpus, memory := info.Config.CPUs.Boot, info.Memory>>20
	if vcpus < 1 || vcpus > 255 || memory < 1 || memory > 1<<22 {
		return 0, 0, fmt.Errorf("the monitor says that the VM has %d virtual CPUs and %d MiB", vcpus, memory)
	}
	return vcpus, int(memory), nil
}
