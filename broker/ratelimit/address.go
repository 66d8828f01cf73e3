package ratelimit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

const (
	ipv6Network = 64 // bits; who has one address has all of its network
	maxHops     = 32
	maxHeader   = 4 << 10
)

// Network is the name under which requests of an address are counted: an IPv4 address, or the /64 of an IPv6 one. What is no address
// is its own name.
func Network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, err := a.Prefix(ipv6Network)
	if err != nil {
		return a.String()
	}
	return p.String()
}

// Proxies are the proxies whose word on the address of a client counts. A nil Proxies trusts none.
type Proxies struct{ networks []netip.Prefix }

// ParseProxies reads addresses and networks such as "10.0.0.0/8".
func ParseProxies(list []string) (*Proxies, error) {
	p := &Proxies{}
	for _, text := range list {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			a = a.Unmap()
			p.networks = append(p.networks, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		n, err := netip.ParsePrefix(text)
		if err != nil || n.Addr().Is4In6() {
			return nil, fmt.Errorf("trusted_proxies has %.64q, want an address or a network such as \"10.0.0.0/8\"", text)
		}
		if n.Bits() == 0 {
			return nil, fmt.Errorf("trusted_proxies has %.64q, which is everybody: clients could then choose their own address", text)
		}
		p.networks = append(p.networks, n.Masked())
	}
	return p, nil
}

func (p *Proxies) trusts(a netip.Addr) bool {
	if p == nil {
		return false
	}
	for _, n := range p.networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Client is the address of a request's client, without its port: the peer of the connection, or, when that is a trusted proxy, the
// right-most address in X-Forwarded-For that is not one. Everything left of that is what the client wrote itself. Where the header is
// missing or cannot be read, the last address known for sure counts.
func (p *Proxies) Client(r *http.Request) string {
	at, ok := parse(r.RemoteAddr)
	if !ok {
		return r.RemoteAddr
	}
	if !p.trusts(at) {
		return at.String()
	}
	hops := 0
	lines := r.Header.Values("X-Forwarded-For")
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		if len(rest) > maxHeader {
			rest = rest[len(rest)-maxHeader:]
		}
		for more := true; more; {
			var one string
			cut := strings.LastIndexByte(rest, ',')
			if more = cut >= 0; more {
				rest, one = rest[:cut], rest[cut+1:]
			} else {
				one = rest
			}
			before, ok := parse(strings.TrimSpace(one))
			if hops++; !ok || hops > maxHops {
				return at.String()
			}
			if at = before; !p.trusts(at) {
				return at.String()
			}
		}
	}
	return at.String()
}

// parse reads an address with or without a port.
func parse(text string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	a, err := netip.ParseAddr(text)
	return a.Unmap().WithZone(""), err == nil
}
