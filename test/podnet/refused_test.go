package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
)

// TestRefused has namespaces that cannot be joined. Each is left as it was, and without a state file.
func TestRefused(t *testing.T) {
	need(t)
	ctx := testContext(t)
	veth := func(i int) string {
		return fmt.Sprintf("ip link add net%d type veth peer name peer%d netns PEER\nip link set net%d up\n", i, i, i)
	}
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\n", i/250, i%250)
		}
		return b.String()
	}
	var veths strings.Builder
	for i := range network.MaxInterfaces + 1 {
		veths.WriteString(veth(i))
	}
	for name, c := range map[string]struct {
		setup, batch string
		want         error
		says         string
	}{
		"tap":       {setup: "ip tuntap add tap0 mode tap\nip addr add 10.0.0.1/24 dev tap0", want: network.ErrUnsupported, says: "tap0"},
		"vxlan":     {setup: "ip link add vx0 type vxlan id 4 dstport 4789\nip link set vx0 up", want: network.ErrUnsupported, says: "vxlan"},
		"bridge":    {setup: "ip link add br0 type bridge\nip link set br0 up", want: network.ErrUnsupported, says: "macvlan"},
		"left over": {setup: "ip link add tap0_cloister type bridge\nip link set tap0_cloister up", says: "already"},
		"name":      {setup: "ip link add e,fd=3 type veth peer name peer netns PEER\nip link set e,fd=3 up", says: "e,fd=3"},
		"same MAC": {
			setup: veth(0) + veth(1) + "ip link set net0 address 52:54:00:00:00:01\nip link set net1 address 52:54:00:00:00:01",
			want:  network.ErrUnsupported, says: "net1",
		},
		"blackhole":  {setup: veth(0) + "ip route add blackhole 10.9.0.0/16", want: network.ErrUnsupported, says: "10.9.0.0/16"},
		"interfaces": {setup: veths.String(), want: network.ErrTooMany, says: "interfaces"},
		"routes": {
			setup: veth(0), batch: many(network.MaxRoutes+1, "route add 10.1.%d.%d dev net0"), want: network.ErrTooMany, says: "routes",
		},
		"looked at": { // those of the kernel's protocol do not count, but there is an end
			setup: veth(0), batch: many(16*network.MaxRoutes+1, "route add 10.%d.%d.0/24 proto kernel dev net0"),
			want: network.ErrTooMany, says: "more than 16384",
		},
		"addresses": {
			setup: veth(0), batch: many(network.MaxAddresses+1, "addr add 10.1.%d.%d/32 dev net0"), want: network.ErrTooMany, says: "addresses",
		},
		"neighbours": {
			setup: veth(0), batch: many(network.MaxNeighbors+1, "neigh add 10.1.%d.%d lladdr 52:54:00:00:00:01 dev net0"),
			want: network.ErrTooMany, says: "neighbours",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNetns(t, "pod")
			ns.run(strings.ReplaceAll(c.setup, "PEER", newNetns(t, "peer").path))
			if _, err := ns.command(c.batch, nil, "ip", "-batch", "-"); err != nil {
				t.Fatal(err)
			}
			before, state := ns.snapshot(), stateFile(t)
			n, err := network.Attach(ctx, network.Config{NetNS: ns.path, StateFile: state})
			if n != nil || err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, expected %v and %q", err, c.want, c.says)
			}
			t.Log(err)
			ns.expectSnapshot(before, "after the refusal")
			if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the state file: %v, expected none", err)
			}
		})
	}
}

// TestRollback has a second interface that fails: the first is given back, also when the caller has given up.
func TestRollback(t *testing.T) {
	need(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, plainBridgeNet).add(ns, "eth0")
	newCNI(t, node, ptpNet).add(ns, "net1")
	ns.settle(testContext(t))
	before, state := ns.snapshot(), stateFile(t)
	// A tap with the second name that is down and without address is not looked at, but is in the way.
	ns.run("ip tuntap add mode tap")
	ns.run("ip link set tap0 name tap1_cloister")
	_, err := network.Attach(testContext(t), network.Config{NetNS: ns.path, StateFile: state})
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, expected EBUSY", err)
	}
	// It cannot be told from ours by then, so that it goes as well.
	ns.expectSnapshot(before, "after a failure")
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := network.Attach(gone, network.Config{NetNS: ns.path, StateFile: state}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, expected the end of the context", err)
	}
	ns.expectSnapshot(before, "after a caller that gave up")
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state file: %v, expected none", err)
	}
}

// TestVhost has a file in the place of the back end's device, opened once for each queue.
func TestVhost(t *testing.T) {
	need(t)
	ctx := testContext(t)
	ns := newNetns(t, "pod")
	ns.run("ip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path + "\nip link set eth0 up")
	device := filepath.Join(t.TempDir(), "vhost-net")
	for want, cfg := range map[int]network.Config{
		0: {Vhost: device + ".none"}, 3: {Vhost: device}, -1: {Vhost: device, WithoutVhost: true},
	} {
		if err := os.WriteFile(device, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.NetNS, cfg.StateFile, cfg.Queues = ns.path, stateFile(t), 3
		n, err := network.Attach(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if taps, vhosts := n.Interfaces()[0].Files(); len(taps) != 3 || len(vhosts) != max(want, 0) {
			t.Errorf("case %d: %d taps and %d back ends", want, len(taps), len(vhosts))
		}
		if err := n.Detach(ctx); err != nil {
			t.Error(err)
		}
	}
}
