package network

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// Guest is what the agent in the machine has to be told, in this order.
type Guest struct {
	// Interfaces are requests of UpdateInterface. The agent finds the card by the hardware address.
	Interfaces []*agent.Interface
	// Routes is the request of UpdateRoutes.
	Routes []*agent.Route
	// Neighbors is the request of AddARPNeighbors.
	Neighbors []*agent.ARPNeighbor
	// Warnings are for the log: what is in the namespace and cannot be said to the agent, where that does no harm.
	Warnings []string
}

// Requests are the agent's requests; the second and the third are nil when there is nothing to say.
func (g Guest) Requests() ([]*agent.UpdateInterfaceRequest, *agent.UpdateRoutesRequest, *agent.AddARPNeighborsRequest) {
	var interfaces []*agent.UpdateInterfaceRequest
	for _, i := range g.Interfaces {
		interfaces = append(interfaces, &agent.UpdateInterfaceRequest{Interface: i})
	}
	var routes *agent.UpdateRoutesRequest
	if len(g.Routes) > 0 {
		routes = &agent.UpdateRoutesRequest{Routes: &agent.Routes{Routes: g.Routes}}
	}
	var neighbors *agent.AddARPNeighborsRequest
	if len(g.Neighbors) > 0 {
		neighbors = &agent.AddARPNeighborsRequest{Neighbors: &agent.ARPNeighbors{ARPNeighbors: g.Neighbors}}
	}
	return interfaces, routes, neighbors
}

// guest describes the picked links.
func (c *contents) guest(picked []netlink.Link) (Guest, error) {
	var g Guest
	names := map[int]string{}
	var peers []*agent.Route
	for _, link := range picked {
		a := link.Attrs()
		names[a.Index] = a.Name
		i := &agent.Interface{
			Device: a.Name, Name: a.Name, Mtu: uint64(a.MTU), HwAddr: a.HardwareAddr.String(), Type: link.Type(),
			RawFlags: a.RawFlags & unix.IFF_NOARP,
		}
		for _, addr := range c.addrs {
			if addr.LinkIndex != a.Index || !passed(addr, a.HardwareAddr) {
				continue
			}
			ones, _ := addr.Mask.Size()
			i.IPAddresses = append(i.IPAddresses, &agent.IPAddress{Family: family(addr.IP), Address: addr.IP.String(), Mask: strconv.Itoa(ones)})
			if addr.Peer != nil {
				// The kernel's own route to the peer comes from a peer address, which the agent cannot be told.
				peers = append(peers, &agent.Route{Dest: addr.Peer.String(), Device: a.Name, Scope: unix.RT_SCOPE_LINK, Family: family(addr.IP)})
			}
		}
		g.Interfaces = append(g.Interfaces, i)
	}
	routes, warnings, err := describeRoutes(c.routes, names)
	if err != nil {
		return Guest{}, err
	}
	if c.rules > 0 {
		warnings = append(warnings, fmt.Sprintf("%d rules of policy routing are left out: the guest has the main routing table only", c.rules))
	}
	g.Routes, g.Warnings = append(peers, routes...), warnings
	for _, n := range c.neighbors {
		if name, ok := names[n.LinkIndex]; ok && !n.IP.IsLoopback() {
			g.Neighbors = append(g.Neighbors, describeNeighbor(n, name))
		}
	}
	return g, nil
}

// passed says whether the guest is given an address: not one of loopback, none that makes itself (the guest has the same hardware
// address and makes the same), and none that another station has.
func passed(a netlink.Addr, mac net.HardwareAddr) bool {
	const skip = unix.IFA_F_TEMPORARY | unix.IFA_F_DADFAILED
	// Temporary is the IPv6 meaning of a flag that IPv4 uses for secondary addresses.
	if a.IP.To4() == nil && a.Flags&skip != 0 {
		return false
	}
	return !a.IP.IsLoopback() && !a.IP.Equal(linkLocal(mac))
}

// linkLocal is the address that an IPv6 host makes of its hardware address (RFC 4291 appendix A).
func linkLocal(mac net.HardwareAddr) net.IP {
	if len(mac) != 6 {
		return nil
	}
	ip := net.IP{0: 0xfe, 1: 0x80, 15: 0}
	copy(ip[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return ip
}

// family of an address in the agent's numbers.
func family(ip net.IP) agent.IPFamily {
	if ip.To4() != nil {
		return agent.IPFamily_v4
	}
	return agent.IPFamily_v6
}

// describeRoutes translates the routes over the named links. The agent knows no metrics and replaces a route by a later one with the
// same destination, so only the one that is in effect is passed.
func describeRoutes(routes []netlink.Route, names map[int]string) (out []*agent.Route, warnings []string, err error) {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	seen := map[string]string{}
	for _, r := range routes {
		if hops := len(r.MultiPath); hops > 0 {
			// Two networks that both have a default route make such a route in IPv6. Traffic gets through by any of the ways.
			warnings = append(warnings, fmt.Sprintf("the route to %s goes %d ways, and the guest is told the first", r.Dst, hops))
			r = firstHop(r)
		}
		ar, err := describeRoute(r, names)
		if err != nil {
			return nil, nil, err
		}
		if ar == nil {
			continue
		}
		key := fmt.Sprint(ar.GetFamily(), " ", ar.GetDest())
		via := fmt.Sprintf("%s via %q on %s", describeDest(ar), ar.GetGateway(), ar.GetDevice())
		if first, ok := seen[key]; ok {
			warnings = append(warnings, fmt.Sprintf("the route to %s (metric %d) is left out: %s comes first, and the guest keeps one of them",
				via, r.Priority, first))
			continue
		}
		seen[key] = via
		out = append(out, ar)
	}
	return out, warnings, nil
}

// firstHop is the route with the first of its ways only.
func firstHop(r netlink.Route) netlink.Route {
	hop := r.MultiPath[0]
	r.MultiPath, r.LinkIndex, r.Gw, r.Flags = nil, hop.LinkIndex, hop.Gw, hop.Flags
	r.Via, r.Encap, r.NewDst = hop.Via, hop.Encap, hop.NewDst
	return r
}

func describeDest(r *agent.Route) string {
	if r.GetDest() == "" {
		return "default"
	}
	return r.GetDest()
}

// describeRoute returns nil for a route that has nothing to do with the named links.
func describeRoute(r netlink.Route, names map[int]string) (*agent.Route, error) {
	dest := "default"
	if r.Dst != nil {
		dest = r.Dst.String()
	}
	refuse := func(format string, args ...any) (*agent.Route, error) {
		return nil, fmt.Errorf("the route to %s %s: %w", dest, fmt.Sprintf(format, args...), ErrUnsupported)
	}
	switch {
	case r.Type != unix.RTN_UNICAST:
		return refuse("is of type %d, expected unicast (%d)", r.Type, unix.RTN_UNICAST)
	case r.Via != nil || r.Encap != nil || r.NewDst != nil || r.MPLSDst != nil:
		return refuse("has a gateway of another family or an encapsulation")
	case r.Tos != 0:
		return refuse("is for type of service %d only", r.Tos)
	}
	name, ok := names[r.LinkIndex]
	if !ok {
		return nil, nil
	}
	ar := &agent.Route{
		Device: name, Scope: uint32(r.Scope), Mtu: uint32(r.MTU), Family: agent.IPFamily_v4,
		// The other flags say what became of the route here, and the guest's kernel refuses them.
		Flags: uint32(r.Flags) & unix.RTNH_F_ONLINK,
	}
	if r.Family == netlink.FAMILY_V6 {
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
		if r.Src.IsLoopback() {
			return refuse("has the loopback source %s", r.Src)
		}
		ar.Source = r.Src.String()
	}
	return ar, nil
}

func describeNeighbor(n netlink.Neigh, device string) *agent.ARPNeighbor {
	state := int32(netlink.NUD_REACHABLE)
	if n.State&netlink.NUD_PERMANENT != 0 {
		state = netlink.NUD_PERMANENT
	}
	return &agent.ARPNeighbor{
		ToIPAddress: &agent.IPAddress{Family: family(n.IP), Address: n.IP.String()},
		Device:      device, Lladdr: n.HardwareAddr.String(), State: state, Flags: int32(n.Flags & netlink.NTF_ROUTER),
	}
}
