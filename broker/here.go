package broker

import (
	"net"
	"slices"
	"strconv"

	"github.com/cloister/cloister/broker/loopback"
)

// here is an address by which this machine reaches a listener. One on all addresses has none of its own, and is reached by a name that its
// certificate has: that of the loopback device, else the first.
func here(addr net.Addr, names []string) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() || len(names) == 0 {
		return addr.String()
	}
	name := names[0]
	if i := slices.IndexFunc(names, loopback.Is); i >= 0 {
		name = names[i]
	}
	return net.JoinHostPort(name, strconv.Itoa(tcp.Port))
}
