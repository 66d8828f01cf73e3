package network

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

func TestParseInterface(t *testing.T) {
	good := &agent.Interface{Name: "eth0", HwAddr: "52:54:00:12:34:56", Mtu: 1450, IPAddresses: []*agent.IPAddress{{Address: "10.0.2.15", Mask: "24"}, {Address: "fd00::2", Mask: "64"}}}
	w, err := parseInterface(good)
	if err != nil || w.addrs[0].String() != "10.0.2.15/24" || w.addrs[1].String() != "fd00::2/64" || w.mtu != 1450 {
		t.Fatalf("got %+v, %v", w, err)
	}
	addr := func(a, m string) *agent.Interface {
		return &agent.Interface{Name: "eth0", IPAddresses: []*agent.IPAddress{{Address: a, Mask: m}}}
	}
	for name, bad := range map[string]*agent.Interface{
		"nothing": nil, "no name": {}, "path": {Name: "../eth0"}, "long": {Name: "interface-name-x"}, "space": {Name: "a b"}, "mac": {Name: "eth0", HwAddr: "zz"},
		"mtu": {Name: "eth0", Mtu: 1 << 40}, "address": addr("10.0.2", "24"), "prefix": addr("10.0.2.1", "33"), "negative": addr("10.0.2.1", "-1"), "text": addr("10.0.2.1", "255.0.0.0"),
		"loopback": addr("127.0.0.1", "8"), "loopback 6": addr("::1", "128"), "mapped": addr("0::ffff:127.0.0.1", "8"), "zone": addr("::1%eth0", "128"),
	} {
		if _, err := parseInterface(bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestParseDestination(t *testing.T) {
	for _, c := range []struct {
		text string
		fam  agent.IPFamily
		want string
	}{
		{"", agent.IPFamily_v4, "0.0.0.0/0"}, {"", agent.IPFamily_v6, "::/0"}, {"10.244.1.7/16", agent.IPFamily_v4, "10.244.0.0/16"}, {"10.0.0.1", agent.IPFamily_v4, "10.0.0.1/32"},
	} {
		if got, err := parseDestination(c.text, c.fam); err != nil || got.String() != c.want {
			t.Errorf("%q: %v, %v", c.text, got, err)
		}
	}
	for _, bad := range []string{"x", "10.0.0.0/40", "10.0.0.0/"} {
		if got, err := parseDestination(bad, agent.IPFamily_v4); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// TestStack works in a network namespace of its own.
func TestStack(t *testing.T) {
	needs.Root(t, "network namespaces")
	runtime.LockOSThread() // not unlocked: the thread belongs to the new namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", err)
	}
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.UpLoopback(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	iface := &agent.Interface{Device: "eth0", Name: "eth0", HwAddr: "52:54:00:12:34:56", Mtu: 1400,
		IPAddresses: []*agent.IPAddress{{Address: "10.9.0.5", Mask: "24"}, {Address: "fd09::5", Mask: "64"}}}

	short, done := context.WithTimeout(ctx, 50*time.Millisecond)
	defer done()
	if err := s.UpdateInterface(short, iface); !errors.Is(err, ErrNoInterface) {
		t.Fatalf("without the interface: %v", err)
	}
	// The loopback link has the address zero; it stays as it is.
	for _, mac := range []string{"00:00:00:00:00:00", "00-00-00-00-00-00", "0000.0000.0000"} {
		short, done := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := s.UpdateInterface(short, &agent.Interface{Device: "eth0", Name: "eth0", HwAddr: mac}); !errors.Is(err, ErrNoInterface) {
			t.Errorf("address %s: got %v, expected no such interface", mac, err)
		}
		done()
	}
	if lo, err := netlink.LinkByName("lo"); err != nil || lo.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Fatalf("lo is %v, %v", lo, err)
	}
	// Another link has the wanted name, so they swap.
	other := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wrong"}, PeerName: "eth0"}
	if err := netlink.LinkAdd(other); err != nil {
		needs.Missing(t, "virtual links (veth) in this kernel: %v", err)
	}
	link, err := netlink.LinkByName("wrong")
	if err != nil {
		t.Fatal(err)
	}
	mac := []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateInterface(ctx, iface); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateRoutes([]*agent.Route{{Gateway: "10.9.0.1", Device: "eth0"}, {Dest: "10.9.5.0/24", Device: "eth0", Scope: 253}}); err != nil {
		t.Fatal(err)
	}
	// The kernel takes an IPv6 source only when it is sure that nobody else has the address.
	if err := s.UpdateRoutes([]*agent.Route{{Dest: "fd09:1::/64", Device: "eth0", Source: "fd09::5", Family: agent.IPFamily_v6}}); err != nil {
		t.Fatal(err)
	}
	if err := s.AddNeighbors([]*agent.ARPNeighbor{{ToIPAddress: &agent.IPAddress{Address: "10.9.0.1"}, Device: "eth0", Lladdr: "52:54:00:00:00:01"}}); err != nil {
		t.Fatal(err)
	}
	list, err := s.ListInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, i := range list {
		if i.GetName() == "eth0" && i.GetHwAddr() == "52:54:00:12:34:56" && i.GetMtu() == 1400 {
			found = true
		}
	}
	if !found {
		t.Errorf("interfaces: %v", list)
	}
	if err := s.UpdateRoutes([]*agent.Route{{Device: "nowhere"}}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("got %v", err)
	}
	routes, err := s.ListRoutes()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(routes)
}
