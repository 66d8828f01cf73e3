package containerd

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

const cniPlugins = "/usr/lib/cni"

// Network is the bridge of a daemon's pods. It is made by the first pod and taken away when the daemon's test ends.
type Network struct {
	Name   string       // of the CNI network
	Bridge string       // of the interface
	IPv4   netip.Prefix // of pods
	IPv6   netip.Prefix // of pods; invalid without Options.IPv6
}

// Gateway is the host's IPv4 address on the bridge.
func (n Network) Gateway() netip.Addr { return n.IPv4.Addr().Next() }

// Gateway6 is the host's IPv6 address on the bridge.
func (n Network) Gateway6() netip.Addr { return n.IPv6.Addr().Next() }

func newNetwork(ipv6 bool) (Network, error) {
	var r [4]byte
	if _, err := rand.Read(r[:]); err != nil {
		return Network{}, err
	}
	name := "clo" + hex.EncodeToString(r[:])
	n := Network{Name: name, Bridge: name, IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 160 + r[0]%64, r[1], 0}), 24)}
	if ipv6 {
		n.IPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xc1, r[0], r[1], r[2], r[3]}), 64)
	}
	return n, nil
}

// conflist is what `cni/10-NAME.conflist` says. Records of addresses are below the daemon's own directory.
func (n Network) conflist(records string) string {
	ranges := fmt.Sprintf(`[{"subnet": %q}]`, n.IPv4)
	routes := `{"dst": "0.0.0.0/0"}`
	if n.IPv6.IsValid() {
		ranges += fmt.Sprintf(`, [{"subnet": %q}]`, n.IPv6)
		routes += `, {"dst": "::/0"}`
	}
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0", "name": %q,
  "plugins": [
    {"type": "bridge", "bridge": %q, "isGateway": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s], "routes": [%s]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
`, n.Name, n.Bridge, records, ranges, routes)
}

// ports are the names of the interfaces on the bridge.
func (n Network) ports() []string {
	entries, err := os.ReadDir("/sys/class/net/" + n.Bridge + "/brif")
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// rules are the lines of iptables that name the network.
func (n Network) rules() []string {
	var found []string
	for _, program := range []string{"iptables", "ip6tables"} {
		out, err := exec.Command(program, "-t", "nat", "-S").Output()
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(out), "\n") {
			if strings.Contains(line, `"`+n.Name+`"`) || strings.Contains(line, n.IPv4.Addr().String()[:len(n.IPv4.Addr().String())-1]) {
				found = append(found, program+" "+line)
			}
		}
	}
	return found
}

// remove takes the bridge away.
func (n Network) remove() error {
	if _, err := os.Stat("/sys/class/net/" + n.Bridge); err != nil {
		return nil
	}
	if out, err := exec.Command("ip", "link", "del", n.Bridge).CombinedOutput(); err != nil {
		return fmt.Errorf("removing the bridge %s: %w: %s", n.Bridge, err, out)
	}
	return nil
}
