package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cloister/cloister/host/vmm"
)

// plugBridge adds the bus for devices that come later. A machine's own bus takes none, and a PCI Express root port takes one; behind
// an old PCI bridge there is room for 31, which the guest's kernel hears of through ACPI.
//
// One place is taken from the start, by the source of entropy, or by initdata in a VM that has none: behind an empty bridge neither OVMF nor the kernel opens windows for the
// memory of devices, and the first that came later would find no room. Windows are of 1 MiB at least, which is enough for all 31.
func (a *argList) plugBridge() {
	if whyNoDisks(a.c) != nil {
		return
	}
	a.add("-device", fmt.Sprintf("pci-bridge,bus=pcie.0,id=%s,chassis_nr=1,shpc=off,addr=%#x,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m",
		plugBus, plugBusSlot))
}

// network adds the network cards.
func (a *argList) network() {
	if a.c.UserNetwork {
		a.add("-netdev", "user,id=net0,ipv6=off")
		a.device("virtio-net", "netdev=net0"+a.noROM(), "mac="+vmm.GuestMAC)
	}
	for i, n := range a.c.NICs {
		id, f := fmt.Sprintf("net%d", i), a.f.nics[i]
		netdev := "tap,id=" + id
		if len(f.taps) == 1 {
			netdev += ",fd=" + joinInts(f.taps)
		} else {
			netdev += ",fds=" + joinInts(f.taps)
		}
		switch len(f.vhosts) {
		case 0:
		case 1:
			netdev += ",vhost=on,vhostfd=" + joinInts(f.vhosts)
		default:
			netdev += ",vhost=on,vhostfds=" + joinInts(f.vhosts)
		}
		options := []string{"netdev=" + id + a.noROM(), "mac=" + n.MAC}
		if n.MTU > 0 {
			options = append(options, "host_mtu="+strconv.Itoa(n.MTU))
		}
		if len(f.taps) > 1 {
			options = append(options, "mq=on")
			if transport(a.c) == "pci" {
				options = append(options, "vectors="+strconv.Itoa(vectors(len(f.taps))))
			}
		}
		a.add("-netdev", netdev)
		a.device("virtio-net", options...)
	}
}

// vectors is how many interrupts a card with several queues needs: two for each, one for its configuration, one for its control queue.
func vectors(queues int) int { return 2*queues + 2 }

// noROM leaves out the card's boot program, which only cards on PCI have.
func (a *argList) noROM() string {
	if transport(a.c) != "pci" {
		return ""
	}
	return ",romfile="
}

func joinInts(fds []int) string {
	var b strings.Builder
	for i, fd := range fds {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(strconv.Itoa(fd))
	}
	return b.String()
}

// shareAndBalloon adds the shared directory and the device that gives memory back.
func (a *argList) shareAndBalloon() {
	if a.c.Share != nil {
		a.add("-chardev", fmt.Sprintf("socket,id=share,fd=%d", a.f.share))
		a.device("vhost-user-fs", "chardev=share", "tag="+a.c.Share.Tag, fmt.Sprintf("queue-size=%d", shareQueue))
	}
	if a.c.Balloon {
		a.device("virtio-balloon", "free-page-reporting=on", "deflate-on-oom=on")
	}
}
