package podnet

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/host/network"
)

// TestLimits has limits of bits per second. A transfer cannot be faster than them; how much slower it is depends on the machine.
func TestLimits(t *testing.T) {
	need(t)
	for _, model := range models {
		t.Run(string(model), func(t *testing.T) {
			ctx := testContext(t)
			node, ns := newNetns(t, "node"), newNetns(t, "pod")
			newCNI(t, node, plainBridgeNet).add(ns, "eth0")
			ns.settle(ctx)
			before := ns.snapshot()
			const bits = 64_000_000
			// What a bucket of 20 ms and the answer's start take away from the time.
			const least = time.Duration(float64(bigBody) * 8 / bits * 0.9 * float64(time.Second))
			cfg := network.Config{Model: model, TxBitsPerSecond: bits}
			if model == network.ModelTC {
				cfg.RxBitsPerSecond = bits
			}
			p := attachWith(t, ns, cfg)
			p.guest.serve("pod")
			node.serve("node")
			i := p.net.Interfaces()[0]
			for link, limited := range map[string]bool{i.Name: true, i.Tap: cfg.RxBitsPerSecond > 0} {
				if got := ns.run("tc qdisc show dev " + link); limited != strings.Contains(got, "tbf be0: root") || limited && !strings.Contains(got, "rate 64Mbit") {
					t.Errorf("%s: got %s, expected a limit: %v", link, got, limited)
				}
			}
			begin := time.Now()
			if got := node.get(ctx, "http://"+address(t, p.net, 0)+"/big"); len(got) != bigBody {
				t.Errorf("the big body has %d bytes", len(got))
			}
			if took := time.Since(begin); took < least {
				t.Errorf("the pod sent %d bytes in %s, expected at least %s", bigBody, took, least)
			}
			if cfg.RxBitsPerSecond > 0 {
				begin = time.Now()
				if got := p.guest.get(ctx, "http://10.78.0.1/big"); len(got) != bigBody {
					t.Errorf("the big body has %d bytes", len(got))
				}
				if took := time.Since(begin); took < least {
					t.Errorf("the pod received %d bytes in %s, expected at least %s", bigBody, took, least)
				}
			}
			if err := p.net.Detach(ctx); err != nil {
				t.Fatal(err)
			}
			ns.expectSnapshot(before, "after Detach")
			// After a crash the state is enough.
			cfg.NetNS, cfg.StateFile = ns.path, stateFile(t)
			if _, err := network.Attach(ctx, cfg); err != nil {
				t.Fatal(err)
			}
			if err := network.Cleanup(ctx, cfg.StateFile); err != nil {
				t.Error(err)
			}
			ns.expectSnapshot(before, "after Cleanup")
		})
	}
}

// TestForeignLimit keeps a limit that somebody else made.
func TestForeignLimit(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, plainBridgeNet).add(ns, "eth0")
	ns.settle(ctx)
	ns.run("tc qdisc add dev eth0 root handle 1: tbf rate 1mbit burst 32kbit latency 400ms")
	before := ns.snapshot()
	cfg := network.Config{NetNS: ns.path, StateFile: stateFile(t), TxBitsPerSecond: 1_000_000}
	if _, err := network.Attach(ctx, cfg); !errors.Is(err, network.ErrUnsupported) || !strings.Contains(err.Error(), "tbf of somebody else") {
		t.Errorf("got %v", err)
	}
	ns.expectSnapshot(before, "after the refusal")
	if _, err := os.Stat(cfg.StateFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state file: %v, expected none", err)
	}
}

// TestExtremeLimits has the lowest limit and one that nothing reaches, on several queues.
func TestExtremeLimits(t *testing.T) {
	need(t)
	ctx := testContext(t)
	ns := newNetns(t, "pod")
	ns.run("ip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path + "\nip link set eth0 up")
	for _, bits := range []int{8000, 1 << 50} {
		cfg := network.Config{NetNS: ns.path, StateFile: stateFile(t), TxBitsPerSecond: bits, RxBitsPerSecond: bits, Queues: 4}
		n, err := network.Attach(ctx, cfg)
		if err != nil {
			t.Errorf("%d bits per second: %v", bits, err)
			continue
		}
		if err := n.Detach(ctx); err != nil {
			t.Error(err)
		}
	}
}
