package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/host/portforward"
	"github.com/cloister/cloister/internal/needs"
)

// TestMostInterfaces has as many interfaces as a pod may have, each on a network of its own.
func TestMostInterfaces(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	for i := range network.MaxInterfaces {
		ns.run(fmt.Sprintf(`ip link add net%[1]d type veth peer name pod%[1]d netns %[2]s
			ip addr add 10.60.%[1]d.2/24 dev net%[1]d
			ip link set net%[1]d up`, i, node.path))
		node.run(fmt.Sprintf("ip addr add 10.60.%[1]d.1/24 dev pod%[1]d\nip link set pod%[1]d up", i))
	}
	p := attachPod(t, ns, network.ModelTC, 1)
	if got := len(p.net.Interfaces()); got != network.MaxInterfaces {
		t.Fatalf("%d interfaces, expected %d", got, network.MaxInterfaces)
	}
	for i := range network.MaxInterfaces {
		if err := node.ping(ctx, fmt.Sprintf("10.60.%d.2", i), 56); err != nil {
			t.Error(err)
		}
	}
}

// TestJumbo has frames of 9000 bytes.
func TestJumbo(t *testing.T) {
	need(t)
	for _, model := range models {
		t.Run(string(model), func(t *testing.T) {
			ctx := testContext(t)
			node, ns := newNetns(t, "node"), newNetns(t, "pod")
			newCNI(t, node, strings.Replace(ptpNet, "1450", "9000", 1)).add(ns, "eth0")
			p := attachPod(t, ns, model, 1)
			if i := p.net.Interfaces()[0]; i.MTU != 9000 || p.net.Guest().Interfaces[0].GetMtu() != 9000 {
				t.Errorf("got %+v, expected an MTU of 9000", i)
			}
			if err := node.ping(ctx, address(t, p.net, 0), 9000-28); err != nil {
				t.Error(err)
			}
			if got := p.guest.maxFrame.Load(); got != 9014 {
				t.Errorf("the longest frame had %d bytes, expected 9014", got)
			}
		})
	}
}

// TestOnlyIPv6 has a network without IPv4.
func TestOnlyIPv6(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, `[{"network":"six","type":"bridge","bridge":"cni6","isGateway":true,"ipam":{"type":"host-local","dataDir":"DATA",
		"ranges":[[{"subnet":"fd81::/64"}]],"routes":[{"dst":"::/0"}]}}]`).add(ns, "eth0")
	poll(t, ctx, "addresses", func() bool { return ns.run("ip -6 addr show tentative")+node.run("ip -6 addr show tentative") == "" })
	p := attachPod(t, ns, network.ModelTC, 1)
	p.guest.serve("pod")
	for _, a := range p.net.Guest().Interfaces[0].GetIPAddresses() {
		if !strings.Contains(a.GetAddress(), ":") {
			t.Errorf("the guest has the address %v", a)
		}
	}
	if got := node.get(ctx, "http://["+address(t, p.net, 0)+"]"); !strings.HasPrefix(got, "pod to [fd81::1]") {
		t.Errorf("got %q", got)
	}
	if got := p.guest.run("ip -6 route show default"); !strings.Contains(got, "via fd81::1") {
		t.Errorf("the default route is %q", got)
	}
}

// TestKinds reaches pods whose CNI plugins make ipvlan and vlan interfaces. Some kernels are built without these.
func TestKinds(t *testing.T) {
	need(t)
	for kind, plugin := range map[string]string{
		"ipvlan": `{"network":"k","type":"ipvlan","master":"up0","mode":"l2",IPAM}`,
		"vlan":   `{"network":"k","type":"vlan","master":"up0","vlanId":7,"mtu":1400,IPAM}`,
	} {
		t.Run(kind, func(t *testing.T) {
			ctx := testContext(t)
			node, lan, ns := newNetns(t, "node"), newNetns(t, "lan"), newNetns(t, "pod")
			node.run("ip link add up0 type veth peer name eth0 netns " + lan.path + "\nip link set up0 up")
			lan.run("ip link set eth0 up")
			probe := "ip link add probe link eth0 type ipvlan mode l2"
			if kind == "vlan" {
				probe = "ip link add probe link eth0 type vlan id 7"
			}
			words := strings.Fields(probe)
			if out, err := lan.command("", nil, words[0], words[1:]...); err != nil {
				needs.Optional(t, "this kernel has no %s: %v %s", kind, err, out)
			}
			if kind == "ipvlan" {
				lan.run("ip link del probe\nip addr add 10.82.0.1/24 dev eth0")
			} else {
				lan.run("ip addr add 10.82.0.1/24 dev probe\nip link set probe up")
			}
			newCNI(t, node, "["+strings.Replace(plugin, "IPAM", `"ipam":{"type":"host-local","dataDir":"DATA",
				"ranges":[[{"subnet":"10.82.0.0/24","rangeStart":"10.82.0.10"}]]}`, 1)+"]").add(ns, "net1")
			poll(t, ctx, "the interface", func() bool { return strings.Contains(ns.run("ip -br link show net1"), " UP ") })
			before := ns.snapshot()
			p := attachPod(t, ns, network.ModelTC, 1)
			if got := p.net.Interfaces()[0].Kind; got != kind {
				t.Errorf("the interface is of kind %s", got)
			}
			p.guest.serve("pod")
			if got := lan.get(ctx, "http://10.82.0.10"); !strings.HasPrefix(got, "pod to 10.82.0.1:") {
				t.Errorf("got %q", got)
			}
			if err := p.net.Detach(ctx); err != nil {
				t.Fatal(err)
			}
			ns.expectSnapshot(before, "after Detach")
		})
	}
}

// TestOnlyLoopback has a pod without a network.
func TestOnlyLoopback(t *testing.T) {
	need(t)
	ctx := testContext(t)
	ns := newNetns(t, "pod")
	before := ns.snapshot()
	p := attachPod(t, ns, network.ModelTC, 1)
	if g := p.net.Guest(); len(p.net.Interfaces())+len(g.Interfaces)+len(g.Routes)+len(g.Neighbors) != 0 {
		t.Errorf("the guest is told %+v", g)
	}
	if err := p.net.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	ns.expectSnapshot(before, "after Detach")
}

// TestNamespaceVanishes takes the namespace's path away under a running pod, as a runtime does that forgets the order.
func TestNamespaceVanishes(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, plainBridgeNet).add(ns, "eth0")
	ns.settle(ctx)
	before := ns.snapshot()
	p := attachPod(t, ns, network.ModelTC, 1)
	if err := errors.Join(unix.Unmount(ns.path, unix.MNT_DETACH), os.Remove(ns.path)); err != nil {
		t.Fatal(err)
	}
	if err := node.ping(ctx, address(t, p.net, 0), 56); err != nil {
		t.Error("the pod does not go on:", err)
	}
	if change, err := p.net.Rescan(ctx); err != nil || !change.Empty() {
		t.Errorf("Rescan: %+v, %v", change, err)
	}
	if _, err := network.Attach(ctx, network.Config{NetNS: ns.path, StateFile: stateFile(t)}); !errors.Is(err, network.ErrGone) {
		t.Errorf("Attach: %v, expected ErrGone", err)
	}
	if err := p.net.Detach(ctx); err != nil {
		t.Error("Detach:", err)
	}
	ns.expectSnapshot(before, "after Detach")
	if err := network.Cleanup(ctx, p.state); err != nil {
		t.Error("Cleanup:", err)
	}
	if _, err := os.Stat(p.state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state file: %v, expected none", err)
	}
}

// TestPortForward enters the pod's namespace, as the runtime does for kubectl port-forward, beside a port that CNI maps.
func TestPortForward(t *testing.T) {
	need(t)
	ctx := testContext(t)
	node, ns := newNetns(t, "node"), newNetns(t, "pod")
	newCNI(t, node, bridgeNet).add(ns, "eth0")
	p := attachPod(t, ns, network.ModelTC, 1)
	p.guest.serve("pod")
	f, err := portforward.Start(ctx, portforward.Config{NetNS: ns.path, Dial: p.guest.forward})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from *netns
		url  string
	}{{ns, "http://127.0.0.1"}, {ns, "http://[::1]"}, {node, "http://10.77.0.1:8088"}, {node, "http://" + address(t, p.net, 0)}} {
		if got := c.from.get(ctx, c.url); !strings.HasPrefix(got, "pod to ") {
			t.Errorf("GET %s from %s: got %q", c.url, c.from.name(), got)
		}
	}
	if got := ns.get(ctx, "http://127.0.0.1/big"); len(got) != bigBody {
		t.Errorf("the big body has %d bytes", len(got))
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := node.get(ctx, "http://10.77.0.1:8088"); !strings.HasPrefix(got, "pod to ") {
		t.Errorf("the mapped port after the end: %q", got)
	}
}

// forward is the guest's forwarding port.
func (g *guest) forward(ctx context.Context, port uint32) (net.Conn, error) {
	if port != portforward.GuestPort {
		return nil, fmt.Errorf("guest port %d", port)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "guest")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	go func() {
		defer ends[1].Close()
		var head [2]byte
		if _, err := io.ReadFull(ends[1], head[:]); err != nil {
			return
		}
		var c net.Conn
		err := g.do(func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", binary.BigEndian.Uint16(head[:])))
			return err
		})
		if err != nil {
			text := err.Error()
			_, _ = ends[1].Write(append([]byte{byte(min(len(text), 255))}, text...))
			return
		}
		defer c.Close()
		_, _ = ends[1].Write([]byte{0})
		go func() {
			_, _ = io.Copy(c, ends[1])
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(ends[1], c)
	}()
	return ends[0], nil
}
