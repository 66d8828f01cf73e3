package podnet

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/network"
	"github.com/cloister/cloister/internal/needs"
)

// TestDescription compares what the agent is told with what is in the namespace, and then with what the guest made of it.
func TestDescription(t *testing.T) {
	need(t)
	ns := newNetns(t, "pod")
	ns.run(strings.ReplaceAll(`
		ip link add eth0 type veth peer name eth0 netns PEER
		ip link add eth1 type veth peer name eth1 netns PEER
		ip link set eth0 address 52:54:00:aa:00:00
		ip link set eth1 address 52:54:00:aa:00:01
		ip link set eth0 mtu 1450
		ip link set eth0 up
		ip link set eth1 arp off
		ip link set eth1 up
		ip addr add 10.5.0.2/24 dev eth0
		ip addr add 10.5.0.3/24 dev eth0
		ip addr add fd05::2/64 dev eth0 nodad
		ip addr add 10.6.0.2 peer 10.6.0.1/32 dev eth1
		ip route add default via 10.5.0.1 dev eth0 metric 50
		ip route add default via 10.6.0.1 dev eth1 metric 60
		ip route add 169.254.1.1 dev eth0 scope link
		ip route add 10.7.0.0/16 via 10.99.0.1 dev eth0 onlink mtu 1300
		ip route add 10.8.0.0/16 nexthop via 10.5.0.8 nexthop via 10.5.0.9
		ip -6 route add default via fd05::1 dev eth0
		ip route add 10.11.0.0/16 dev eth0 table 77
		ip rule add from 10.5.0.3 table 77
		ip -6 rule add from fd05::2 table 1077
		ip neigh add 10.5.0.77 lladdr 52:54:00:00:00:77 dev eth0 nud permanent
		ip neigh add 10.5.0.1 lladdr 52:54:00:00:00:01 dev eth0 nud reachable
		ip neigh add 10.5.0.78 lladdr 52:54:00:00:00:78 dev eth0 nud reachable
		ip neigh add fd05::1 lladdr 52:54:00:00:00:01 dev eth0 router nud permanent
		ip link add later type veth peer name later netns PEER`, "PEER", newNetns(t, "peer").path))
	p := attachPod(t, ns, network.ModelTC, 1)
	got := p.net.Guest()
	var text strings.Builder
	for _, m := range messages(got) {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var tidy any // protojson varies its spaces on purpose
		if err := json.Unmarshal(b, &tidy); err != nil {
			t.Fatal(err)
		}
		if b, err = json.Marshal(tidy); err != nil {
			t.Fatal(err)
		}
		text.Write(append(b, '\n'))
	}
	want := `{"IPAddresses":[{"address":"10.5.0.2","mask":"24"},{"address":"10.5.0.3","mask":"24"},` +
		`{"address":"fd05::2","family":"v6","mask":"64"}],"device":"eth0","hwAddr":"52:54:00:aa:00:00","mtu":"1450","name":"eth0","type":"veth"}
{"IPAddresses":[{"address":"10.6.0.2","mask":"32"}],"device":"eth1","hwAddr":"52:54:00:aa:00:01","mtu":"1500",` +
		`"name":"eth1","rawFlags":128,"type":"veth"}
{"dest":"10.6.0.1/32","device":"eth1","scope":253}
{"dest":"169.254.1.1/32","device":"eth0","scope":253}
{"dest":"10.7.0.0/16","device":"eth0","flags":4,"gateway":"10.99.0.1","mtu":1300}
{"dest":"10.8.0.0/16","device":"eth0","gateway":"10.5.0.8"}
{"device":"eth0","gateway":"10.5.0.1"}
{"device":"eth0","family":"v6","gateway":"fd05::1"}
{"device":"eth0","lladdr":"52:54:00:00:00:01","state":2,"toIPAddress":{"address":"10.5.0.1"}}
{"device":"eth0","lladdr":"52:54:00:00:00:77","state":128,"toIPAddress":{"address":"10.5.0.77"}}
{"device":"eth0","flags":128,"lladdr":"52:54:00:00:00:01","state":128,"toIPAddress":{"address":"fd05::1","family":"v6"}}
`
	if sorted(text.String()) != sorted(want) {
		t.Errorf("the agent is told\n%s\nexpected\n%s", text.String(), want)
	}
	if w := strings.Join(got.Warnings, "\n"); len(got.Warnings) != 3 || !strings.Contains(w, "metric 60") || !strings.Contains(w, "2 ways") ||
		!strings.Contains(w, "2 rules") {
		t.Errorf("warnings %q, expected the second default route, the several ways and the rules", got.Warnings)
	}
	tap := ns.run("ip addr show dev " + p.net.Interfaces()[0].Tap)
	if !strings.Contains(tap, "mtu 1450") || strings.Contains(tap, "inet") {
		t.Errorf("the tap is\n%s\nexpected the interface's MTU and no address", tap)
	}
	inGuest := p.guest.run("ip route\nip -6 route\nip neigh show nud permanent\nip link show eth1")
	for _, line := range []string{
		"default via 10.5.0.1 dev eth0", "10.6.0.1 dev eth1", "10.7.0.0/16 via 10.99.0.1 dev eth0 onlink mtu 1300",
		"default via fd05::1 dev eth0",
		"10.5.0.77 dev eth0 lladdr 52:54:00:00:00:77 PERMANENT", "NOARP",
	} {
		if !strings.Contains(inGuest, line) {
			t.Errorf("the guest has\n%s\nexpected %q", inGuest, line)
		}
	}
}

func messages(g network.Guest) (all []proto.Message) {
	for _, m := range g.Interfaces {
		all = append(all, m)
	}
	for _, m := range g.Routes {
		all = append(all, m)
	}
	for _, m := range g.Neighbors {
		all = append(all, m)
	}
	return all
}

// TestQEMU gives the files to the monitor that takes them in the end. The machine is not started, so that it costs no emulation.
func TestQEMU(t *testing.T) {
	need(t)
	program := needs.Program(t, "qemu-system-x86_64")
	for _, model := range models {
		ctx := testContext(t)
		ns := newNetns(t, "pod")
		ns.run("ip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path + "\nip link set eth0 up")
		n, err := network.Attach(ctx, network.Config{NetNS: ns.path, StateFile: stateFile(t), Model: model, Queues: 2, WithoutVhost: true})
		if err != nil {
			t.Fatal(err)
		}
		i := n.Interfaces()[0]
		taps, _ := i.Files()
		cmd := exec.CommandContext(ctx, program,
			"-machine", "q35", "-accel", "tcg", "-m", "32M", "-nodefaults", "-no-user-config", "-display", "none", "-S",
			"-netdev", "tap,id=net0,fds=3:4", "-device", "virtio-net-pci,netdev=net0,romfile=,mac="+i.MAC+",mq=on,vectors=6",
			"-qmp", "stdio")
		cmd.ExtraFiles = taps
		cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-rx-filter"}{"execute":"quit"}`)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), fmt.Sprintf(`"main-mac": %q`, i.MAC)) {
			t.Errorf("%s: %v: %s", model, err, out)
		}
		if err := n.Detach(ctx); err != nil {
			t.Error(err)
		}
	}
}

func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
