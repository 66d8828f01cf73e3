package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// maxDevices bounds the devices of one container; each may be waited for.
const maxDevices = 64

// findDevices finds the disks that a request gives to a container, by their paths there. A disk of the host is readable
// and changeable by it, so it needs the policy's word like a storage.
func (a *Agent) findDevices(ctx context.Context, list []*agent.Device) (map[string]container.DeviceSpec, error) {
	if len(list) > maxDevices {
		return nil, invalid("%d devices, at most %d are accepted", len(list), maxDevices)
	}
	out := map[string]container.DeviceSpec{}
	for _, d := range list {
		spec, err := a.findDevice(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("device %.120q: %w", d.GetContainerPath(), err)
		}
		p := filepath.Clean(d.GetContainerPath())
		if _, ok := out[p]; ok {
			return nil, invalid("device %.120q is listed twice", p)
		}
		out[p] = spec
	}
	return out, nil
}

func (a *Agent) findDevice(ctx context.Context, d *agent.Device) (container.DeviceSpec, error) {
	kind, place := d.GetType(), d.GetId()
	switch {
	case d.GetContainerPath() == "":
		return container.DeviceSpec{}, invalid("it has no path in the container")
	case kind == driverMMIO:
		place = d.GetVmPath()
	case kind == driverBlock, kind == driverSCSI:
	case strings.HasPrefix(kind, "vfio"):
		return container.DeviceSpec{}, fmt.Errorf("type %.40q: the guest image has no driver for passed-through devices: %w", kind, errUnsupported)
	default:
		return container.DeviceSpec{}, fmt.Errorf("type %.40q: %w", kind, errUnsupported)
	}
	if _, err := a.cfg.Gate.Begin(ctx, hostStorageRule, d); err != nil {
		return container.DeviceSpec{}, fmt.Errorf("a disk that the host can read and change: %w", err)
	}
	disk, err := a.cfg.Devices.Find(ctx, kind, place)
	if err != nil {
		return container.DeviceSpec{}, err
	}
	return container.DeviceSpec{Type: "b", Major: disk.Major, Minor: disk.Minor}, nil
}
