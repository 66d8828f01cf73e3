package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// firstDynamic is the first number that Linux gives out at run time for character devices; those below mean the same on every kernel.
const firstDynamic = 234

// devices decides about the device nodes of the specification.
func (b *build) devices(ctx context.Context) error {
	l := b.req.Spec.Linux
	if l == nil {
		return nil
	}
	all := privileged(l)
	dropped := 0
	for _, d := range l.Devices {
		switch {
		case all && d.Type != "p":
			// The list of a privileged container is every device of the host, which is not the machine it runs on.
			dropped++
		case d.Type == "b":
			if err := b.listedBlock(ctx, d); err != nil {
				return fmt.Errorf("device %s: %w", d.Path, err)
			}
		case d.Type == "c" || d.Type == "u":
			if d.Major >= firstDynamic {
				return fmt.Errorf("device %s (%d:%d) is the host's, and the guest's kernel does not have it\nhint: pass hardware through by a device plugin "+
					"for virtual machines, or run the pod without one", d.Path, d.Major, d.Minor)
			}
			b.out.LinuxDevices = append(b.out.LinuxDevices, d)
		default:
			b.out.LinuxDevices = append(b.out.LinuxDevices, d)
		}
	}
	if dropped > 0 {
		b.set.log.Warn("a privileged container gets no devices of the host", "container", b.req.ID, "devices", dropped,
			"hint", "privileged_without_host_devices = true in containerd's runtime says the same")
	}
	return nil
}

// privileged says whether a container may use every device, as containerd writes it down.
func privileged(l *specs.Linux) bool {
	return l.Resources != nil && slices.ContainsFunc(l.Resources.Devices, func(r specs.LinuxDeviceCgroup) bool {
		return r.Allow && (r.Type == "" || r.Type == "a") && r.Major == nil && r.Minor == nil && strings.Contains(r.Access, "w")
	})
}

// listedBlock gives the guest a block device that the specification lists.
func (b *build) listedBlock(ctx context.Context, d specs.LinuxDevice) error {
	if d.Major < 0 || d.Minor < 0 || d.Major > 1<<12 || d.Minor > 1<<20 {
		return fmt.Errorf("number %d:%d", d.Major, d.Minor)
	}
	src := &source{path: d.Path}
	src.stat.Mode = unix.S_IFBLK
	src.stat.Rdev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	return b.rawDevice(ctx, src, d.Path, !deviceWritable(b.req.Spec.Linux, d), &d)
}

// deviceWritable says whether the container may write to a device; without a rule about it, it may.
func deviceWritable(l *specs.Linux, d specs.LinuxDevice) bool {
	writable, ruled := false, false
	if l.Resources == nil {
		return true
	}
	for _, r := range l.Resources.Devices {
		if r.Allow && r.Type == d.Type && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor {
			ruled = true
			writable = writable || strings.Contains(r.Access, "w")
		}
	}
	return writable || !ruled
}

// rawDevice plugs a block device and makes it a device of the container; node, when not nil, has its owner and mode.
func (b *build) rawDevice(ctx context.Context, src *source, at string, readOnly bool, node *specs.LinuxDevice) error {
	if !strings.HasPrefix(at, "/dev/") {
		return errors.New("a block device can only be given to a container below /dev\nhint: change the container's devicePath, or mountPath")
	}
	d, err := b.attach(ctx, src, attachOptions{readOnly: readOnly})
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w\nhint: this virtual machine cannot get disks while it runs; use a RuntimeClass whose VMM can", err)
	}
	if err != nil {
		return err
	}
	dev := &agent.Device{Id: d.place.Address, Type: d.place.Driver, ContainerPath: at}
	if d.place.Driver == driverMMIO {
		dev.Id, dev.VmPath = "", d.place.Address
	}
	b.out.Devices = append(b.out.Devices, dev)
	entry := specs.LinuxDevice{Path: at, Type: "b", Major: int64(unix.Major(src.stat.Rdev)), Minor: int64(unix.Minor(src.stat.Rdev))}
	if node != nil {
		entry = *node
	} else {
		mode, uid, gid := os.FileMode(src.stat.Mode)&fs.ModePerm, src.stat.Uid, src.stat.Gid
		entry.FileMode, entry.UID, entry.GID = &mode, &uid, &gid
	}
	b.out.LinuxDevices = append(b.out.LinuxDevices, entry)
	return nil
}
