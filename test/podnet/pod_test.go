package podnet

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
)

// pod is a namespace made by CNI, joined with a guest.
type pod struct {
	*netns
	guest *guest
	net   *network.Network
	state string
}

// attachPod joins a namespace with a new guest and configures it.
func attachPod(t *testing.T, ns *netns, model network.Model, queues int) *pod {
	t.Helper()
	return attachWith(t, ns, network.Config{Model: model, Queues: queues})
}

// attachWith is attachPod with more to configure.
func attachWith(t *testing.T, ns *netns, cfg network.Config) *pod {
	t.Helper()
	ctx := testContext(t)
	p := &pod{netns: ns, guest: newGuest(t, ns.name()+"-guest"), state: stateFile(t)}
	cfg.NetNS, cfg.StateFile = ns.path, p.state
	var err error
	if p.net, err = network.Attach(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.net.Detach(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	for _, i := range p.net.Interfaces() {
		p.guest.plug(i)
	}
	p.guest.configure(ctx, p.net.Guest())
	return p
}

var models = []network.Model{network.ModelTC, network.ModelMacvtap}

// TestBridge has two pods on a bridge: one in a machine, one in a plain namespace as runc would have it.
func TestBridge(t *testing.T) {
	need(t)
	for _, model := range models {
		t.Run(string(model), func(t *testing.T) {
			ctx := testContext(t)
			node, first, second := newNetns(t, "node"), newNetns(t, "first"), newNetns(t, "second")
			br := newCNI(t, node, bridgeNet)
			br.add(first, "eth0")
			newCNI(t, node, strings.ReplaceAll(bridgeNet, "8088", "8089")).add(second, "eth0")
			poll(t, ctx, "addresses", func() bool {
				return second.run("ip -6 addr show tentative")+first.run("ip -6 addr show tentative") == ""
			})
			second.serve("second")
			first.settle(ctx)
			before := first.snapshot()
			p := attachPod(t, first, model, 1)
			p.guest.serve("first")

			ip4, ip6 := address(t, p.net, 0), address(t, p.net, 1)
			other4, other6 := addressOf(t, second, "-4"), addressOf(t, second, "-6")
			for _, c := range []struct {
				from *netns
				to   string
			}{
				{node, ip4}, {node, ip6}, {second, ip4}, {second, ip6}, {p.guest.netns, "10.77.0.1"}, {p.guest.netns, "fd77::1"},
				{p.guest.netns, other4}, {p.guest.netns, other6},
			} {
				if err := c.from.ping(ctx, c.to, 56); err != nil {
					t.Errorf("ping from %s to %s: %v", c.from.name(), c.to, err)
				}
			}
			for _, c := range []struct {
				from      *netns
				url, want string
			}{
				{node, "http://" + ip4, "first"}, {node, "http://[" + ip6 + "]", "first"}, {second, "http://" + ip4, "first to " + other4},
				{second, "http://[" + ip6 + "]", "first to [" + other6}, {p.guest.netns, "http://" + other4, "second to " + ip4},
				{p.guest.netns, "http://[" + other6 + "]", "second to [" + ip6},
				{node, "http://10.77.0.1:8088", "first"}, {second, "http://10.77.0.1:8088", "first"}, // portmap
				{p.guest.netns, "http://10.77.0.1:8089", "second"},
			} {
				if got := c.from.get(ctx, c.url); !strings.HasPrefix(got, c.want) {
					t.Errorf("GET %s from %s: got %q, expected %q", c.url, c.from.name(), got, c.want)
				}
			}
			if got := node.get(ctx, "http://"+ip4+"/big"); len(got) != bigBody {
				t.Errorf("the big body has %d bytes, expected %d", len(got), bigBody)
			}
			if got := p.guest.get(ctx, "http://"+other4+"/big"); len(got) != bigBody {
				t.Errorf("the big body has %d bytes, expected %d", len(got), bigBody)
			}
			// The MTU of the network is 1400: what fits gets through whole, what does not is refused at once.
			if err := p.guest.ping(ctx, other4, 1400-28); err != nil {
				t.Error("a ping of the MTU's size:", err)
			}
			if err := p.guest.ping(ctx, other4, 1400-27); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("a ping above the MTU: %v, expected EMSGSIZE", err)
			}
			if got := p.guest.maxFrame.Load(); got != 1400+14 {
				t.Errorf("the longest frame had %d bytes, expected %d", got, 1400+14)
			}
			if err := p.net.Detach(ctx); err != nil {
				t.Fatal(err)
			}
			first.expectSnapshot(before, "after Detach")
			// As CNI left it, the namespace's own kernel answers again.
			if err := second.ping(ctx, ip4, 56); err != nil {
				t.Error("after Detach:", err)
			}
		})
	}
}

// address returns one of the addresses the guest was told.
func address(t testing.TB, n *network.Network, which int) string {
	t.Helper()
	list := n.Guest().Interfaces[0].GetIPAddresses()
	if len(list) <= which {
		t.Fatalf("addresses %v, expected more than %d", list, which)
	}
	return list[which].GetAddress()
}

// addressOf asks the namespace itself.
func addressOf(t testing.TB, n *netns, family string) string {
	t.Helper()
	for _, word := range strings.Fields(n.run("ip -br " + family + " addr show dev eth0 scope global")) {
		if ip, _, ok := strings.Cut(word, "/"); ok {
			return ip
		}
	}
	t.Fatalf("%s has no %s address", n.name(), family)
	return ""
}

// TestPointToPoint has routes through a gateway that is not in a subnet of the interface, both families, and several queues.
func TestPointToPoint(t *testing.T) {
	need(t)
	for _, model := range models {
		t.Run(string(model), func(t *testing.T) {
			ctx := testContext(t)
			node, ns := newNetns(t, "node"), newNetns(t, "ptp")
			newCNI(t, node, ptpNet).add(ns, "eth0")
			ns.settle(ctx)
			before := ns.snapshot()
			p := attachPod(t, ns, model, 4)
			p.guest.serve("ptp")
			i := p.net.Interfaces()[0]
			if taps, _ := i.Files(); len(taps) != 4 || i.MTU != 1450 || i.Kind != "veth" {
				t.Fatalf("got %+v, expected 4 queues and an MTU of 1450", i)
			}
			for which, want := range []string{"10.79.0.2", "fd79::2"} {
				if got := address(t, p.net, which); got != want {
					t.Fatalf("address %q, expected %q", got, want)
				}
				if err := node.ping(ctx, want, 1300); err != nil {
					t.Error(err)
				}
				if err := p.guest.ping(ctx, strings.TrimSuffix(want, "2")+"1", 1300); err != nil {
					t.Error(err)
				}
			}
			for range 20 {
				if got := node.get(ctx, "http://[fd79::2]"); !strings.HasPrefix(got, "ptp") {
					t.Errorf("got %q", got)
				}
			}
			if err := p.net.Detach(ctx); err != nil {
				t.Fatal(err)
			}
			ns.expectSnapshot(before, "after Detach")
		})
	}
}

// TestMacvlan reaches the pod from a neighbour of the node's card.
func TestMacvlan(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, lan, ns := newNetns(t, "node"), newNetns(t, "lan"), newNetns(t, "pod")
	node.run("ip link add up0 type veth peer name eth0 netns " + lan.path + "\nip link set up0 up")
	lan.run("ip addr add 10.80.0.1/24 dev eth0\nip link set eth0 up")
	newCNI(t, node, macvlanNet).add(ns, "net1")
	before := ns.snapshot()
	p := attachPod(t, ns, network.ModelTC, 1)
	p.guest.serve("pod")
	if got := lan.get(ctx, "http://10.80.0.10"); !strings.HasPrefix(got, "pod to 10.80.0.1:") {
		t.Errorf("got %q", got)
	}
	if err := p.net.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	ns.expectSnapshot(before, "after Detach")
}
