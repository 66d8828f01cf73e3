package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// UpdateRoutes adds or replaces routes, those without a gateway first so that gateways become reachable. Other routes
// stay as they are.
func (s *Stack) UpdateRoutes(routes []*agent.Route) error {
	for _, viaGateway := range []bool{false, true} {
		for _, r := range routes {
			if (r.GetGateway() != "") != viaGateway {
				continue
			}
			nr, err := s.parseRoute(r)
			if err != nil {
				return fmt.Errorf("route to %q: %w", r.GetDest(), err)
			}
			if err := s.nl.RouteReplace(nr); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("setting the route to %q via %q on %s: %w", r.GetDest(), r.GetGateway(), r.GetDevice(), err)
			}
		}
	}
	return nil
}

func (s *Stack) parseRoute(r *agent.Route) (*netlink.Route, error) {
	if err := checkName(r.GetDevice()); err != nil {
		return nil, err
	}
	link, err := s.nl.LinkByName(r.GetDevice())
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w: %w", r.GetDevice(), ErrNoInterface, err)
	}
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return nil, fmt.Errorf("%s is the guest's loopback interface", r.GetDevice())
	}
	if r.GetScope() > 255 {
		return nil, fmt.Errorf("scope %d is above 255", r.GetScope())
	}
	if r.GetMtu() > maxMTU {
		return nil, fmt.Errorf("MTU %d is above %d", r.GetMtu(), maxMTU)
	}
	nr := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Scope:     netlink.Scope(r.GetScope()),
		Table:     unix.RT_TABLE_MAIN,
		Protocol:  unix.RTPROT_BOOT,
		Type:      unix.RTN_UNICAST,
		Flags:     int(r.GetFlags()),
		MTU:       int(r.GetMtu()),
	}
	if nr.Dst, err = parseDestination(r.GetDest(), r.GetFamily()); err != nil {
		return nil, err
	}
	if g := r.GetGateway(); g != "" {
		a, err := parseAddr(g)
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		nr.Gw = a.AsSlice()
	}
	if src := r.GetSource(); src != "" {
		a, err := parseSource(src)
		if err != nil {
			return nil, err
		}
		nr.Src = a
	}
	return nr, nil
}

// parseDestination reads an address or a prefix; an empty text is the default route of the family.
func parseDestination(dest string, fam agent.IPFamily) (*net.IPNet, error) {
	switch {
	case dest == "" && fam == agent.IPFamily_v6:
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, nil
	case dest == "":
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, nil
	}
	if p, err := netip.ParsePrefix(dest); err == nil {
		if p.Addr().Is4In6() || p.Addr().IsLoopback() {
			return nil, fmt.Errorf("destination %q is mapped or loopback, expected a plain one", dest)
		}
		p = p.Masked()
		return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, nil
	}
	a, err := parseAddr(dest)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, nil
}

// parseSource reads the preferred source, an address with or without a prefix length.
func parseSource(src string) (net.IP, error) {
	if p, err := netip.ParsePrefix(src); err == nil {
		src = p.Addr().String()
	}
	a, err := parseAddr(src)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return a.AsSlice(), nil
}

// ListRoutes returns the main table.
func (s *Stack) ListRoutes() ([]*agent.Route, error) {
	var out []*agent.Route
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := s.nl.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			link, err := s.nl.LinkByIndex(r.LinkIndex)
			if err != nil {
				continue // gone since the listing, or a route without a single device
			}
			ar := &agent.Route{
				Device: link.Attrs().Name, Scope: uint32(r.Scope), Flags: uint32(r.Flags), Mtu: uint32(r.MTU), Family: agent.IPFamily_v4,
			}
			if fam == netlink.FAMILY_V6 {
				ar.Family = agent.IPFamily_v6
			}
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones > 0 {
					ar.Dest = r.Dst.String()
				}
			}
			if r.Gw != nil {
				ar.Gateway = r.Gw.String()
			}
			if r.Src != nil {
				ar.Source = r.Src.String()
			}
			out = append(out, ar)
		}
	}
	return out, nil
}

// AddNeighbors adds neighbour entries; a state of zero means permanent.
func (s *Stack) AddNeighbors(neighbors []*agent.ARPNeighbor) error {
	for _, n := range neighbors {
		if err := checkName(n.GetDevice()); err != nil {
			return err
		}
		link, err := s.nl.LinkByName(n.GetDevice())
		if err != nil {
			return fmt.Errorf("looking up %s: %w: %w", n.GetDevice(), ErrNoInterface, err)
		}
		ip, err := parseAddr(n.GetToIPAddress().GetAddress())
		if err != nil {
			return fmt.Errorf("neighbour address: %w", err)
		}
		mac, err := net.ParseMAC(n.GetLladdr())
		if err != nil {
			return fmt.Errorf("hardware address of neighbour %s: %w", ip, err)
		}
		state := int(n.GetState())
		if state == 0 {
			state = unix.NUD_PERMANENT
		}
		fam := netlink.FAMILY_V4
		if ip.Is6() {
			fam = netlink.FAMILY_V6
		}
		entry := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: fam, State: state, Flags: int(n.GetFlags()), IP: ip.AsSlice(), HardwareAddr: mac,
		}
		if err := s.nl.NeighSet(entry); err != nil {
			return fmt.Errorf("adding neighbour %s on %s: %w", ip, n.GetDevice(), err)
		}
	}
	return nil
}
