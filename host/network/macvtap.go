package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// createMacvtap puts a macvtap on a link. In passthru mode it has the link's hardware address and gets every frame, so that the link
// itself stays as CNI left it.
func createMacvtap(name string, lower netlink.Link, queues int) error {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex, a.MTU = name, lower.Attrs().Index, lower.Attrs().MTU
	a.NumRxQueues, a.NumTxQueues = queues, queues
	link := &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_PASSTHRU}}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("making macvtap %s on %s: %w (hint: the kernel needs macvtap; model %q works without)",
			name, lower.Attrs().Name, err, ModelTC)
	}
	return nil
}

// openMacvtap opens the queues of a macvtap. It must be called in the link's network namespace, on a thread of its own.
//
// A macvtap is opened through a character device. Where /dev shows one, it is found under the link's number, which is the same in every
// namespace, so that it may be that of another pod. Here the device's numbers are read from a sysfs of this namespace, and a node is made
// in a file system that only this thread sees and that goes with it.
func openMacvtap(name string, queues int) (_ []*os.File, err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("making a private view of the files: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making a private view of the files: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return nil, fmt.Errorf("mounting the sysfs of the network namespace: %w", err)
	}
	found, err := filepath.Glob("/sys/class/net/" + name + "/tap*/dev")
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("looking for the device of macvtap %s: %d found", name, len(found))
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		return nil, fmt.Errorf("reading the device number of macvtap %s: %w", name, err)
	}
	dev, err := parseDevice(string(text))
	if err != nil {
		return nil, fmt.Errorf("device number of macvtap %s: %w", name, err)
	}
	if err := unix.Mount("tmpfs", "/sys", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=64k,mode=0700"); err != nil {
		return nil, fmt.Errorf("mounting a place for a device node: %w", err)
	}
	const node = "/sys/macvtap"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(dev)); err != nil {
		return nil, fmt.Errorf("making the device node of macvtap %s: %w", name, err)
	}
	var files []*os.File
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for q := range queues {
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, fmt.Errorf("opening queue %d of macvtap %s: %w", q, name, err)
		}
		if err := setIff(fd, name, tapFlags(queues)); err != nil {
			unix.Close(fd)
			return files, fmt.Errorf("preparing queue %d of macvtap %s: %w", q, name, err)
		}
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("%s/%d", name, q)))
	}
	return files, nil
}

// parseDevice reads "major:minor".
func parseDevice(text string) (uint64, error) {
	major, minor, ok := strings.Cut(strings.TrimSpace(text), ":")
	if !ok {
		return 0, fmt.Errorf("%q: expected major:minor", text)
	}
	ma, err := strconv.ParseUint(major, 10, 12)
	if err != nil {
		return 0, err
	}
	mi, err := strconv.ParseUint(minor, 10, 20)
	if err != nil {
		return 0, err
	}
	return unix.Mkdev(uint32(ma), uint32(mi)), nil
}
