package network

import (
	"os"
	"sync"
)

// Interface is an interface of the pod that is joined with a tap. It is a value: when the interface changes, there is another one.
type Interface struct {
	// Name is its name in the namespace and in the guest; MAC is its hardware address and that of the guest's card.
	Name, MAC string
	// Kind is that of the link: veth, macvlan, ipvlan or vlan.
	Kind string
	// MTU is in bytes, without the Ethernet header.
	MTU int
	// Tap is the name of the tap or macvtap in the namespace.
	Tap string

	index int
	files *files
}

// files are the open descriptors of an interface.
type files struct {
	mu           sync.Mutex
	taps, vhosts []*os.File
	vhost        string // the device of vhosts
}

// Files returns the queues of the tap, for the monitor to inherit, and as many descriptors of the kernel's virtio-net back end, or none.
// Both are empty after CloseFiles.
func (i *Interface) Files() (taps, vhosts []*os.File) {
	i.files.mu.Lock()
	defer i.files.mu.Unlock()
	return i.files.taps, i.files.vhosts
}

// RenewVhosts replaces the descriptors of the back end by new ones, for a second monitor: the process that has used one stays its owner as
// long as it is open anywhere, and every other is refused (VHOST_SET_OWNER of linux/vhost.h).
func (i *Interface) RenewVhosts() error {
	i.files.mu.Lock()
	defer i.files.mu.Unlock()
	if len(i.files.vhosts) == 0 {
		return nil
	}
	fresh, err := openVhost(i.files.vhost, len(i.files.vhosts))
	if err != nil {
		return err
	}
	closeAll(i.files.vhosts)
	i.files.vhosts = fresh
	return nil
}

// CloseFiles gives up our copies of the descriptors. It is called when the monitor has them, so that the tap goes with the monitor.
func (i *Interface) CloseFiles() {
	i.files.mu.Lock()
	defer i.files.mu.Unlock()
	closeAll(i.files.taps)
	closeAll(i.files.vhosts)
	i.files.taps, i.files.vhosts = nil, nil
}
