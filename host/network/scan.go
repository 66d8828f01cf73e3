package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrUnsupported means that the namespace has something that cannot be passed to a virtual machine.
var ErrUnsupported = errors.New("not supported for a virtual machine")

// ErrTooMany means that the namespace has more of something than a pod may have.
var ErrTooMany = errors.New("too many")

// connectable are the kinds of links that carry Ethernet frames of one hardware address, which a guest can take over.
var connectable = map[string]bool{"veth": true, "macvlan": true, "ipvlan": true, "vlan": true}

// contents is what a namespace has, read in one go.
type contents struct {
	links     []netlink.Link // all but loopback
	addrs     []netlink.Addr
	routes    []netlink.Route
	neighbors []netlink.Neigh
	// rules counts the rules of policy routing that lead elsewhere than to the tables every namespace has.
	rules int
}

// scanAttempts is how often a listing is read again that changed while it was read.
const scanAttempts = 5

// scan reads the namespace of the calling thread.
func scan() (*contents, error) {
	for attempt := 1; ; attempt++ {
		c, err := scanOnce()
		if errors.Is(err, netlink.ErrDumpInterrupted) && attempt < scanAttempts {
			continue
		}
		return c, err
	}
}

func scanOnce() (*contents, error) {
	c := &contents{}
	if err := c.scanLinks(); err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	if err := c.scanAddrs(); err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	if err := c.scanRoutes(); err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	if err := c.scanNeighbors(); err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", err)
	}
	if err := c.scanRules(); err != nil {
		return nil, fmt.Errorf("listing rules of policy routing: %w", err)
	}
	return c, nil
}

// dump asks the kernel for a listing and calls each for every entry, which says whether it counts. The library's own functions keep
// the whole listing in memory. The rest of a listing that is too long is received and dropped.
func dump(request, answer int, header nl.NetlinkRequestData, limit int, each func(msg []byte) (counts bool, err error)) error {
	req := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
	req.AddData(header)
	var failed error
	count := 0
	err := req.ExecuteIter(unix.NETLINK_ROUTE, uint16(answer), func(msg []byte) bool {
		counts, err := each(msg)
		if counts {
			count++
		}
		if err == nil && count > limit {
			err = fmt.Errorf("%w: more than %d", ErrTooMany, limit)
		}
		failed = err
		return err == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

func (c *contents) scanLinks() error {
	return dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), maxLinks, func(msg []byte) (bool, error) {
		link, err := netlink.LinkDeserialize(nil, msg)
		if err != nil {
			return false, err
		}
		if link.Attrs().Flags&net.FlagLoopback == 0 {
			c.links = append(c.links, link)
		}
		return true, nil
	})
}

func (c *contents) scanAddrs() error {
	return dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), MaxAddresses, func(msg []byte) (bool, error) {
		addr, err := parseAddr(msg)
		if err != nil {
			return false, err
		}
		c.addrs = append(c.addrs, addr)
		return true, nil
	})
}

// parseAddr reads an entry of the address listing. IPv4 gives its own address as IFA_LOCAL and that of the peer, when there is one,
// as IFA_ADDRESS; IPv6 without a peer gives IFA_ADDRESS only.
func parseAddr(msg []byte) (netlink.Addr, error) {
	if len(msg) < unix.SizeofIfAddrmsg {
		return netlink.Addr{}, fmt.Errorf("an address of %d bytes, expected at least %d", len(msg), unix.SizeofIfAddrmsg)
	}
	head := nl.DeserializeIfAddrmsg(msg)
	a := netlink.Addr{LinkIndex: int(head.Index), Flags: int(head.Flags), Scope: int(head.Scope)}
	var local, address net.IP
	// Not with the library's ParseRouteAttr, which panics when the padding of the last attribute is missing.
	for rest := msg[head.Len():]; len(rest) >= unix.SizeofRtAttr; {
		length, kind := int(nl.NativeEndian().Uint16(rest)), nl.NativeEndian().Uint16(rest[2:])
		if length < unix.SizeofRtAttr || length > len(rest) {
			return netlink.Addr{}, fmt.Errorf("an attribute of %d bytes where %d are left", length, len(rest))
		}
		value := rest[unix.SizeofRtAttr:length]
		switch kind {
		case unix.IFA_LOCAL:
			local = bytes.Clone(value)
		case unix.IFA_ADDRESS:
			address = bytes.Clone(value)
		case unix.IFA_FLAGS:
			if len(value) >= 4 {
				a.Flags = int(nl.NativeEndian().Uint32(value))
			}
		}
		rest = rest[min(len(rest), (length+3)&^3):]
	}
	if local == nil {
		local = address
	}
	if len(local) != net.IPv4len && len(local) != net.IPv6len || int(head.Prefixlen) > 8*len(local) {
		return netlink.Addr{}, fmt.Errorf("an address of %d bytes with a prefix of %d bits", len(local), head.Prefixlen)
	}
	prefix := net.CIDRMask(int(head.Prefixlen), 8*len(local))
	a.IPNet = &net.IPNet{IP: local, Mask: prefix}
	if len(address) == len(local) && !address.Equal(local) {
		a.IPNet.Mask = net.CIDRMask(8*len(local), 8*len(local))
		a.Peer = &net.IPNet{IP: address.Mask(prefix), Mask: prefix}
	}
	return a, nil
}

func (c *contents) scanRoutes() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var failed error
		seen := 0
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		err := netlink.RouteListFilteredIter(family, main, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			if seen++; seen > maxScanned {
				failed = fmt.Errorf("%w: more than %d", ErrTooMany, maxScanned)
				return false
			}
			// What the kernel made by itself for an address, the guest's kernel makes as well.
			if r.Protocol == unix.RTPROT_KERNEL {
				return true
			}
			if len(c.routes) == MaxRoutes {
				failed = fmt.Errorf("%w: more than %d", ErrTooMany, MaxRoutes)
				return false
			}
			r.Family = family
			c.routes = append(c.routes, r)
			return true
		})
		if failed != nil {
			return failed
		}
		if err != nil && !(family == netlink.FAMILY_V6 && errors.Is(err, unix.EAFNOSUPPORT)) {
			return err
		}
	}
	return nil
}

func (c *contents) scanNeighbors() error {
	gateways := map[string]bool{}
	for _, r := range c.routes {
		if r.Gw != nil {
			gateways[r.Gw.String()] = true
		}
	}
	seen := 0
	return dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{}, MaxNeighbors, func(msg []byte) (bool, error) {
		if seen++; seen > maxScanned {
			return false, fmt.Errorf("%w: more than %d", ErrTooMany, maxScanned)
		}
		n, err := netlink.NeighDeserialize(msg)
		if err != nil {
			return false, err
		}
		permanent := n.State&netlink.NUD_PERMANENT != 0
		gateway := n.State&netlink.NUD_REACHABLE != 0 && gateways[n.IP.String()]
		if len(n.IP) == 0 || len(n.HardwareAddr) != 6 || n.Flags&netlink.NTF_PROXY != 0 || !permanent && !gateway {
			return false, nil
		}
		c.neighbors = append(c.neighbors, *n)
		return true, nil
	})
}

func (c *contents) scanRules() error {
	err := dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, nl.NewIfInfomsg(unix.AF_UNSPEC), MaxRoutes, func(msg []byte) (bool, error) {
		if len(msg) < unix.SizeofRtMsg {
			return false, fmt.Errorf("a rule of %d bytes, expected at least %d", len(msg), unix.SizeofRtMsg)
		}
		switch nl.DeserializeRtMsg(msg).Table {
		case unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT:
		default:
			c.rules++
		}
		return true, nil
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without policy routing
	}
	return err
}

// has says whether a link has an address that somebody gave it.
func (c *contents) has(index int) bool {
	for _, a := range c.addrs {
		if a.LinkIndex == index && !a.IP.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// pick returns the links to connect, checked. Those that are down and have no address are not set up yet, or were made by the kernel
// in every namespace (tunl0, sit0, …); ours says which links this package made.
func (c *contents) pick(ours func(name string) bool) ([]netlink.Link, error) {
	var picked []netlink.Link
	byMAC := map[string]string{}
	for _, link := range c.links {
		a := link.Attrs()
		if ours(a.Name) || a.Flags&net.FlagUp == 0 && !c.has(a.Index) {
			continue
		}
		if err := checkLink(link); err != nil {
			return nil, err
		}
		mac := a.HardwareAddr.String()
		if other, taken := byMAC[mac]; taken {
			return nil, fmt.Errorf("interfaces %s and %s both have the hardware address %s, by which the guest tells them apart: %w",
				other, a.Name, mac, ErrUnsupported)
		}
		byMAC[mac] = a.Name
		if picked = append(picked, link); len(picked) > MaxInterfaces {
			return nil, fmt.Errorf("%w network interfaces: more than %d", ErrTooMany, MaxInterfaces)
		}
	}
	return picked, nil
}

func checkLink(link netlink.Link) error {
	a := link.Attrs()
	if err := checkName(a.Name); err != nil {
		return err
	}
	if isOurName(a.Name) {
		return fmt.Errorf("the namespace has a link %s already: another sandbox uses it, or one that crashed was not cleaned up", a.Name)
	}
	if kind := link.Type(); !connectable[kind] {
		why := "its frames cannot be handed to a network card of the guest"
		switch kind {
		case "device":
			why = "a card of the host needs device pass-through, which is not there yet"
		case "tuntap", "tun", "macvtap":
			why = "it belongs to the program that opens it"
		}
		return fmt.Errorf("interface %s is of kind %q, %s: %w (hint: use a CNI plugin that makes veth, macvlan, ipvlan or vlan interfaces)",
			a.Name, kind, why, ErrUnsupported)
	}
	mac := a.HardwareAddr
	if len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return fmt.Errorf("interface %s has the hardware address %q, expected six bytes of a single station: %w", a.Name, mac, ErrUnsupported)
	}
	if a.MTU < 68 || a.MTU > 65535 {
		return fmt.Errorf("interface %s has an MTU of %d, expected 68 to 65535: %w", a.Name, a.MTU, ErrUnsupported)
	}
	return nil
}

// checkName accepts fewer names than the kernel: they go into policies, logs and the guest.
func checkName(name string) error {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "lo" || name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("interface name %q: expected 1 to 15 letters, digits, dots, dashes and underscores, and not lo", name)
	}
	return nil
}
