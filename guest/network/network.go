package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// ErrNoInterface means that no link matches the request.
var ErrNoInterface = errors.New("no such network interface")

// maxMTU is the largest MTU the kernel accepts for an Ethernet-like device.
const maxMTU = 65536

// Stack changes the network of the namespace it was opened in.
type Stack struct{ nl *netlink.Handle }

// Open connects to the kernel's routing socket.
func Open() (*Stack, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening the routing socket: %w", err)
	}
	return &Stack{nl: h}, nil
}

// Close releases the socket.
func (s *Stack) Close() { s.nl.Close() }

// UpLoopback brings the loopback interface up.
func (s *Stack) UpLoopback() error {
	lo, err := s.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking up lo: %w", err)
	}
	if err := s.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// UpdateInterface configures the link with the MAC address (or, without one, the name) of iface, waiting for it to
// appear until ctx is done. It replaces the link's addresses by those given.
func (s *Stack) UpdateInterface(ctx context.Context, iface *agent.Interface) error {
	want, err := parseInterface(iface)
	if err != nil {
		return err
	}
	link, err := s.waitLink(ctx, want)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	if err := s.nl.LinkSetDown(link); err != nil {
		return fmt.Errorf("bringing %s down: %w", link.Attrs().Name, err)
	}
	if want.mac != nil && link.Attrs().HardwareAddr.String() != want.mac.String() {
		if err := s.nl.LinkSetHardwareAddr(link, want.mac); err != nil {
			return fmt.Errorf("setting the address of %s to %s: %w", link.Attrs().Name, want.mac, err)
		}
	}
	if err := s.rename(link, want.name); err != nil {
		return err
	}
	if link, err = s.nl.LinkByIndex(index); err != nil {
		return fmt.Errorf("looking up link %d again: %w", index, err)
	}
	if err := s.setAddresses(link, want.addrs); err != nil {
		return err
	}
	if want.mtu > 0 {
		if err := s.nl.LinkSetMTU(link, want.mtu); err != nil {
			return fmt.Errorf("setting the MTU of %s to %d: %w", want.name, want.mtu, err)
		}
	}
	if iface.GetRawFlags()&unix.IFF_NOARP != 0 {
		if err := s.nl.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("switching off ARP on %s: %w", want.name, err)
		}
	}
	if err := s.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", want.name, err)
	}
	return nil
}

// wanted is a checked interface request.
type wanted struct {
	name, device string
	mac          net.HardwareAddr
	mtu          int
	addrs        []*net.IPNet
}

func parseInterface(iface *agent.Interface) (wanted, error) {
	if iface == nil {
		return wanted{}, fmt.Errorf("the request names no interface: %w", ErrNoInterface)
	}
	w := wanted{name: iface.GetName(), device: iface.GetDevice()}
	if w.name == "" {
		w.name = w.device
	}
	if err := checkName(w.name); err != nil {
		return wanted{}, err
	}
	if hw := iface.GetHwAddr(); hw != "" {
		mac, err := net.ParseMAC(hw)
		if err != nil {
			return wanted{}, fmt.Errorf("hardware address of %s: %w", w.name, err)
		}
		w.mac = mac
	}
	if iface.GetMtu() > maxMTU {
		return wanted{}, fmt.Errorf("MTU %d of %s is above %d", iface.GetMtu(), w.name, maxMTU)
	}
	w.mtu = int(iface.GetMtu())
	for _, ip := range iface.GetIPAddresses() {
		n, err := parseAddress(ip)
		if err != nil {
			return wanted{}, fmt.Errorf("address of %s: %w", w.name, err)
		}
		w.addrs = append(w.addrs, n)
	}
	return w, nil
}

// checkName accepts what the kernel accepts for interface names, and nothing that could leave /sys/class/net.
func checkName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\x00") {
		return fmt.Errorf("interface name %q is not valid", name)
	}
	return nil
}

func parseAddress(ip *agent.IPAddress) (*net.IPNet, error) {
	addr, err := parseAddr(ip.GetAddress())
	if err != nil {
		return nil, err
	}
	bits, err := strconv.Atoi(ip.GetMask())
	if err != nil || bits < 0 || bits > addr.BitLen() {
		return nil, fmt.Errorf("prefix length %q of %s is not valid", ip.GetMask(), addr)
	}
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}, nil
}

// parseAddr reads an address of the outside. The guest's own services trust what comes from loopback, so no spelling of
// a loopback address is one; a policy compares texts and may not know them all.
func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, err
	}
	if addr.Zone() != "" || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %q has a zone or is a mapped IPv4 address, expected a plain one", text)
	}
	if addr.IsLoopback() {
		return netip.Addr{}, fmt.Errorf("address %q is a loopback address, which belongs to the guest", text)
	}
	return addr, nil
}

// waitLink returns the wanted link. The subscription is made before the look-up, so a link that appears in between is
// seen either way.
func (s *Stack) waitLink(ctx context.Context, w wanted) (netlink.Link, error) {
	updates := make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("subscribing to link changes: %w", err)
	}
	for {
		link, err := s.findLink(w)
		if err != nil || link != nil {
			return link, err
		}
		select {
		case _, ok := <-updates:
			if !ok {
				return nil, fmt.Errorf("link changes of %s: %w", w.name, ErrNoInterface)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s (%s): %w", w.name, w.mac, ErrNoInterface)
		}
	}
}

// findLink looks for the hardware address first, then for the names; nil means not there yet.
func (s *Stack) findLink(w wanted) (netlink.Link, error) {
	links, err := s.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	if w.mac != nil {
		for _, l := range links {
			// The loopback link has an address as well: zero, in as many spellings as there are.
			if l.Attrs().Flags&net.FlagLoopback == 0 && l.Attrs().HardwareAddr.String() == w.mac.String() {
				return l, nil
			}
		}
	}
	for _, name := range []string{w.device, w.name} {
		for _, l := range links {
			if name != "" && l.Attrs().Name == name && l.Attrs().Flags&net.FlagLoopback == 0 {
				return l, nil
			}
		}
	}
	return nil, nil
}

// rename gives link its name; another link that has it takes the old name of this one.
func (s *Stack) rename(link netlink.Link, name string) error {
	old := link.Attrs().Name
	if old == name {
		return nil
	}
	other, err := s.nl.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	switch {
	case errors.As(err, &notFound):
		if err := s.nl.LinkSetName(link, name); err != nil {
			return fmt.Errorf("renaming %s to %s: %w", old, name, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("looking up %s: %w", name, err)
	case other.Attrs().Flags&net.FlagLoopback != 0:
		return fmt.Errorf("renaming %s to %s: that is the guest's loopback interface", old, name)
	}
	spare := "swap" + strconv.Itoa(other.Attrs().Index)
	wasUp := other.Attrs().Flags&net.FlagUp != 0
	if err := s.nl.LinkSetDown(other); err != nil {
		return fmt.Errorf("bringing %s down: %w", name, err)
	}
	for _, step := range []struct {
		link netlink.Link
		name string
	}{{other, spare}, {link, name}, {other, old}} {
		if err := s.nl.LinkSetName(step.link, step.name); err != nil {
			return fmt.Errorf("renaming %s to %s: %w", old, name, err)
		}
	}
	if wasUp {
		if err := s.nl.LinkSetUp(other); err != nil {
			return fmt.Errorf("bringing %s up: %w", old, err)
		}
	}
	return nil
}

func (s *Stack) setAddresses(link netlink.Link, want []*net.IPNet) error {
	name := link.Attrs().Name
	have, err := s.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", name, err)
	}
	keep := map[string]bool{}
	for _, n := range want {
		keep[n.String()] = true
		addr := &netlink.Addr{IPNet: n}
		if n.IP.To4() == nil {
			// The host has asked already whether another station has it. While the kernel asks again, it refuses routes with this
			// source and programs cannot bind to it.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := s.nl.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("adding %s to %s: %w", n, name, err)
		}
	}
	for _, a := range have {
		if keep[a.IPNet.String()] || a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := s.nl.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %s from %s: %w", a.IPNet, name, err)
		}
	}
	return nil
}

// ListInterfaces describes all links.
func (s *Stack) ListInterfaces() ([]*agent.Interface, error) {
	links, err := s.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var out []*agent.Interface
	for _, l := range links {
		a := l.Attrs()
		iface := &agent.Interface{
			Device: a.Name, Name: a.Name, Mtu: uint64(a.MTU), HwAddr: a.HardwareAddr.String(), Type: l.Type(), RawFlags: a.RawFlags,
		}
		addrs, err := s.nl.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("listing addresses of %s: %w", a.Name, err)
		}
		for _, ad := range addrs {
			ones, _ := ad.Mask.Size()
			iface.IPAddresses = append(iface.IPAddresses, &agent.IPAddress{
				Family: family(ad.IP), Address: ad.IP.String(), Mask: strconv.Itoa(ones),
			})
		}
		out = append(out, iface)
	}
	return out, nil
}

func family(ip net.IP) agent.IPFamily {
	if ip.To4() != nil {
		return agent.IPFamily_v4
	}
	return agent.IPFamily_v6
}
