package network

import (
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ourName is the form of the names of the links this package makes; nothing else is ever deleted.
var ourName = regexp.MustCompile(`^tap(0|[1-9][0-9]{0,2})_cloister$`)

func isOurName(name string) bool { return ourName.MatchString(name) }

// maxNumber is the largest number in a name, so that it has no more than the 15 characters of a link's name.
const maxNumber = 99

func tapName(number int) string { return fmt.Sprintf("tap%d_cloister", number) }

// tapFlags are what QEMU and Cloud Hypervisor expect of a descriptor they are given: whole frames after a virtio-net header.
func tapFlags(queues int) uint16 {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	return flags
}

// createTap makes a tap in the namespace of the calling thread, not persistent, and returns its queues. It fails when the name is taken.
func createTap(name string, queues int) (_ []*os.File, err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for q := range queues {
		flags := tapFlags(queues)
		if q == 0 {
			flags |= unix.IFF_TUN_EXCL // else a tap of somebody else would be taken over
		}
		// The descriptor becomes an os.File only when it belongs to the tap: before, the poller would never hear of it.
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, fmt.Errorf("opening /dev/net/tun: %w (hint: load the kernel module tun)", err)
		}
		if err := setIff(fd, name, flags); err != nil {
			unix.Close(fd)
			return files, fmt.Errorf("making queue %d of tap %s: %w", q, name, err)
		}
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("%s/%d", name, q)))
	}
	return files, nil
}

func setIff(fd int, name string, flags uint16) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// openVhost opens the kernel's virtio-net back end once for each queue; no file and no error when the host does not have it.
func openVhost(path string, queues int) ([]*os.File, error) {
	var files []*os.File
	for range queues {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			closeAll(files)
			return nil, nil
		} else if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("opening the host's virtio-net back end: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// upTap gives the tap its MTU and brings it up. It gets no address of its own and says nothing by itself.
func upTap(name string, mtu int) (netlink.Link, error) {
	tap, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(tap, mtu); err != nil {
		return nil, fmt.Errorf("setting the MTU of %s to %d: %w", name, mtu, err)
	}
	// A kernel without IPv6 has nothing to switch off.
	err = netlink.LinkSetIP6AddrGenMode(tap, genModeNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("switching off automatic addresses of %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return nil, fmt.Errorf("bringing %s up: %w", name, err)
	}
	return tap, nil
}

// genModeNone is IN6_ADDR_GEN_MODE_NONE.
const genModeNone = 1
