package qemu

import (
	"errors"
	"fmt"

	"github.com/cloister/cloister/host/vmm"
)

// whyNoPlug says why a VM takes no devices while it runs, or nil when it does. A VM with firmware has the bus for them only when it was
// made with room for hot plug: the others keep the machine whose start is measured.
func whyNoPlug(c *vmm.Config) error {
	switch {
	case c.TEE != nil:
		return fmt.Errorf("a confidential virtual machine gets no devices while it runs: %w", errors.ErrUnsupported)
	case c.Machine == vmm.MachineMicroVM:
		return fmt.Errorf("machine type %s has no hot plug: %w", vmm.MachineMicroVM, errors.ErrUnsupported)
	case c.FirmwareCode != "" && c.MaxVCPUs == 0 && c.MaxMemoryMiB == 0:
		return fmt.Errorf("a virtual machine whose start is measured, and that was made without room for hot plug, gets no devices while it runs: %w", errors.ErrUnsupported)
	}
	return nil
}

// whyNoDisks says why a VM takes no disks that are read-only or sealed while it runs, or nil when it does. Those that are made with room
// for them have the bus, too: what is on such a disk the guest verifies or has written itself, so that it changes nothing of what is proven.
func whyNoDisks(c *vmm.Config) error {
	why := whyNoPlug(c)
	switch {
	case why == nil:
		return nil
	case !c.LateDisks, bareMachine(c):
		return why
	case c.TEE != nil && c.InitdataImage == nil:
		return fmt.Errorf("a confidential virtual machine without initdata has no bus for disks that come later: %w", errors.ErrUnsupported)
	}
	return nil
}
