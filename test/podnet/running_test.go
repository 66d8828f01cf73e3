package podnet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/network"
)

// TestForeignQdisc keeps the traffic control that a CNI plugin made on the pod's interface.
func TestForeignQdisc(t *testing.T) {
	need(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, plainBridgeNet).add(ns, "eth0")
	ns.run("tc qdisc add dev eth0 ingress\ntc filter add dev eth0 ingress protocol 0x88cc prio 1 u32 match u32 0 0 classid :1")
	ctx := testContext(t)
	ns.settle(ctx)
	before := ns.snapshot()
	p := attachPod(t, ns, network.ModelTC, 1)
	p.guest.serve("pod")
	if got := node.get(ctx, "http://"+address(t, p.net, 0)); !strings.HasPrefix(got, "pod") {
		t.Errorf("got %q", got)
	}
	if err := p.net.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	ns.expectSnapshot(before, "after Detach")
}

// TestWatch adds an interface to a running pod, changes it and takes it away.
func TestWatch(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	empty := ns.snapshot()
	p := attachPod(t, ns, network.ModelTC, 1)
	if got := p.net.Interfaces(); len(got) != 0 {
		t.Fatalf("interfaces of an empty namespace: %v", got)
	}
	changes := make(chan network.Change)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- p.net.Watch(watching, func(c network.Change, err error) error {
			if err != nil {
				return err
			}
			select {
			case changes <- c:
			case <-watching.Done():
			}
			return nil
		})
	}()
	next := func(what string, want func(network.Change) bool) network.Change {
		t.Helper()
		for {
			select {
			case c := <-changes:
				if want(c) {
					return c
				}
			case err := <-ended:
				t.Fatalf("waiting for %s: Watch ended with %v", what, err)
			case <-ctx.Done():
				t.Fatalf("waiting for %s: %v, now %+v", what, ctx.Err(), p.net.Guest())
			}
		}
	}
	br := newCNI(t, node, plainBridgeNet)
	br.add(ns, "eth0")
	c := next("eth0", func(c network.Change) bool { return len(c.Added) == 1 })
	p.guest.plug(c.Added[0])
	for len(p.net.Guest().Routes) == 0 {
		next("the route", func(c network.Change) bool { return c.Routes })
	}
	p.guest.configure(ctx, p.net.Guest())
	if err := node.ping(ctx, address(t, p.net, 0), 56); err != nil {
		t.Error(err)
	}
	ns.run("ip link set eth0 mtu 1300")
	c = next("the MTU", func(c network.Change) bool { return len(c.Updated) == 1 && c.Updated[0].GetMtu() == 1300 })
	if i := p.net.Interfaces()[0]; i.MTU != 1300 || !strings.Contains(ns.run("ip link show "+i.Tap), "mtu 1300") {
		t.Errorf("the tap did not follow the MTU: %+v", i)
	}
	ns.run("ip link set eth0 down\nip link set eth0 name lan0\nip link set lan0 up")
	next("the name", func(c network.Change) bool {
		return len(c.Updated) == 1 && c.Updated[0].GetName() == "lan0" && len(c.Added) == 0
	})
	if i := p.net.Interfaces()[0]; i.Name != "lan0" {
		t.Errorf("the name did not follow: %+v", i)
	}
	p.guest.configure(ctx, p.net.Guest())
	if err := node.ping(ctx, address(t, p.net, 0), 56); err != nil {
		t.Error("with another name:", err)
	}
	ns.run("ip link set lan0 down\nip link set lan0 name eth0\nip link set eth0 up")
	next("the old name", func(c network.Change) bool { return len(c.Updated) == 1 && c.Updated[0].GetName() == "eth0" })
	p.guest.configure(ctx, p.net.Guest())
	// With another hardware address it is another card.
	ns.run("ip link set eth0 address 52:54:00:12:34:57")
	c = next("the hardware address", func(c network.Change) bool { return len(c.Added) == 1 && len(c.Removed) == 1 })
	p.guest.run("ip link del eth0")
	p.guest.plug(c.Added[0])
	p.guest.configure(ctx, p.net.Guest())
	if err := node.ping(ctx, address(t, p.net, 0), 56); err != nil {
		t.Error("with another hardware address:", err)
	}
	br.del(br.added[0])
	next("the removal", func(c network.Change) bool { return len(c.Removed) == 1 })
	ns.expectSnapshot(empty, "after the interface was removed")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWatchReports has an interface that cannot be joined: it is reported, and what was there goes on.
func TestWatchReports(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, plainBridgeNet).add(ns, "eth0")
	p := attachPod(t, ns, network.ModelTC, 1)
	// Made between Attach and Watch, which must not be missed. Nothing else happens by itself any more.
	ns.run("ip link add vx0 type vxlan id 4 dstport 4789\nip link set vx0 addrgenmode none\nip link set vx0 up")
	poll(t, ctx, "addresses", func() bool { return ns.run("ip -6 addr show tentative") == "" })
	reports := make(chan error, 100)
	enough := errors.New("enough")
	ended := make(chan error, 1)
	go func() {
		ended <- p.net.Watch(ctx, func(c network.Change, err error) error {
			reports <- err
			if len(c.Added) > 0 {
				return enough
			}
			return nil
		})
	}()
	for err := range reports {
		if errors.Is(err, network.ErrUnsupported) {
			break
		}
	}
	if err := node.ping(ctx, address(t, p.net, 0), 56); err != nil {
		t.Error(err)
	}
	ns.run("ip link del vx0\nip link add net1 type veth peer name net1 netns " + node.path + "\nip link set net1 up")
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("Watch ended with %v, expected the callback's error", err)
	}
	if got := len(p.net.Interfaces()); got != 2 {
		t.Errorf("%d interfaces, expected 2", got)
	}
	// After Detach nothing is looked at any more.
	if err := p.net.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := p.net.Rescan(ctx); !errors.Is(err, network.ErrDetached) {
		t.Errorf("got %v, expected ErrDetached", err)
	}
}

// TestManyPods makes and removes pods side by side, and leaves no descriptor and no thread in a pod's namespace.
func TestManyPods(t *testing.T) {
	need(t)
	ctx := testContext(t)
	const pods, rounds = 4, 10
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	var namespaces []*netns
	for range pods {
		ns := newNetns(t, "pod")
		ns.run("ip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path + "\nip link set eth0 up")
		namespaces = append(namespaces, ns)
	}
	round := func() {
		failed := make(chan error, pods)
		for _, ns := range namespaces {
			go func() {
				n, err := network.Attach(ctx, network.Config{NetNS: ns.path, StateFile: filepath.Join(filepath.Dir(ns.path), "state"), Queues: 2})
				if err == nil {
					err = n.Detach(ctx)
				}
				failed <- err
			}()
		}
		for range namespaces {
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	before := descriptors()
	for range rounds {
		round()
	}
	if after := descriptors(); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if err := foreignThreads(); err != nil {
		t.Error(err)
	}
}
