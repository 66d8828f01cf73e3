package network

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// What works on real namespaces is tested in test/podnet.

func TestValidate(t *testing.T) {
	good := Config{NetNS: "/run/netns/pod", StateFile: "/run/cloister/pod/network.json"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	bad := Config{NetNS: "pod", StateFile: "", Model: "bridged", Queues: MaxQueues + 1, Vhost: "vhost"}
	err := bad.Validate()
	for _, want := range []string{`namespace "pod"`, `state file ""`, `model "bridged"`, "65 network queues", `vhost device "vhost"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %s", err, want)
		}
	}
	for _, c := range []Config{
		{NetNS: "/a\x00b", StateFile: "/s"}, {NetNS: "/a", StateFile: "/s", Queues: -1}, {NetNS: "/a", StateFile: "/s", TxBitsPerSecond: 7999},
		{NetNS: "/a", StateFile: "/s", RxBitsPerSecond: -1}, {NetNS: "/a", StateFile: "/s", RxBitsPerSecond: 1e6, Model: ModelMacvtap},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// TestHostNetwork needs no rights: such a pod is refused before anything else.
func TestHostNetwork(t *testing.T) {
	dir := t.TempDir()
	pipe, plain := filepath.Join(dir, "pipe"), filepath.Join(dir, "plain")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"": ErrHostNetwork, "/proc/self/ns/net": ErrHostNetwork, "/proc/self/ns/uts": nil, "/dev/null": nil,
		filepath.Join(dir, "missing"): ErrGone, plain: ErrGone, pipe: ErrGone,
	} {
		state := filepath.Join(dir, "state")
		n, err := Attach(t.Context(), Config{NetNS: path, StateFile: state})
		if n != nil || err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: got %v, expected %v", path, err, want)
		}
		if _, err := os.Stat(state); err == nil {
			t.Errorf("%q: there is a state file", path)
		}
	}
	if text := ErrHostNetwork.Error(); !strings.Contains(text, "hint: remove hostNetwork: true") {
		t.Errorf("%q has no alternative", text)
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"eth0", "net1", "a", "eth0.5", "veth_pod-1", "fifteen-letters"} {
		if err := checkName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "lo", ".", "..", "-v", ".eth0", "sixteen-letters-", "a b", "a/b", "a:b", "a,b", "é", "a\n", "\x00"} {
		if err := checkName(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestOurNames(t *testing.T) {
	for number := 0; number <= maxNumber; number++ {
		if name := tapName(number); !isOurName(name) || len(name) >= unix.IFNAMSIZ {
			t.Errorf("%q is not a name of ours", name)
		}
	}
	for _, other := range []string{"", "tap0", "tap_cloister", "tap00_cloister", "tap1000_cloister", "xtap0_cloister", "tap0_cloister\n"} {
		if isOurName(other) {
			t.Errorf("%q is taken for ours", other)
		}
	}
}

func TestPassed(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	if got := linkLocal(mac).String(); got != "fe80::5054:ff:fe12:3456" {
		t.Fatalf("link-local address %s", got)
	}
	for text, want := range map[string]bool{
		"10.0.0.1": true, "127.0.0.1": false, "::1": false, "fd00::1": true, "169.254.3.4": true,
		"fe80::1": true, "fe80::5054:ff:fe12:3456": false,
	} {
		if got := passed(netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(text))}, mac); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
	// The same bit is "temporary" in IPv6 and "secondary" in IPv4.
	if !passed(netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(10, 0, 0, 1)), Flags: unix.IFA_F_TEMPORARY}, mac) ||
		passed(netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP("fd00::1")), Flags: unix.IFA_F_TEMPORARY}, mac) {
		t.Error("secondary and temporary addresses are mixed up")
	}
}

func TestDescribeRoutes(t *testing.T) {
	names := map[int]string{2: "eth0", 3: "eth1"}
	_, ten, _ := net.ParseCIDR("10.0.0.0/8")
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	v4 := func(r netlink.Route) netlink.Route {
		r.Family, r.Type = netlink.FAMILY_V4, unix.RTN_UNICAST
		return r
	}
	got, warnings, err := describeRoutes([]netlink.Route{
		v4(netlink.Route{LinkIndex: 3, Dst: all, Gw: net.IPv4(10, 0, 0, 2), Priority: 200}),
		v4(netlink.Route{LinkIndex: 2, Gw: net.IPv4(10, 0, 0, 1), Priority: 100, Flags: unix.RTNH_F_LINKDOWN | unix.RTNH_F_ONLINK}),
		v4(netlink.Route{LinkIndex: 1, Dst: ten}), // not passed to the guest
	}, names)
	if err != nil || len(got) != 1 || len(warnings) != 1 {
		t.Fatalf("got %v, %q, %v", got, warnings, err)
	}
	if r := got[0]; r.GetDevice() != "eth0" || r.GetDest() != "" || r.GetFlags() != unix.RTNH_F_ONLINK {
		t.Errorf("got %v", r)
	}
	for name, bad := range map[string]netlink.Route{
		"type":      {Type: unix.RTN_PROHIBIT, Dst: ten},
		"via":       v4(netlink.Route{LinkIndex: 2, Dst: ten, Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.IPv6loopback}}),
		"via a hop": v4(netlink.Route{Dst: ten, MultiPath: []*netlink.NexthopInfo{{LinkIndex: 2, Via: &netlink.Via{}}}}),
		"service":   v4(netlink.Route{LinkIndex: 2, Dst: ten, Tos: 8}),
		"source":    v4(netlink.Route{LinkIndex: 2, Dst: ten, Src: net.IPv4(127, 0, 0, 1)}),
	} {
		got, _, err := describeRoutes([]netlink.Route{bad}, names)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "10.0.0.0/8") {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestRetryBusy(t *testing.T) {
	calls := 0
	err := retryBusy(t.Context(), func() error {
		if calls++; calls < 3 {
			return unix.EBUSY
		}
		return unix.ENOENT
	})
	if !errors.Is(err, unix.ENOENT) || calls != 3 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = retryBusy(ctx, func() error { return unix.EBUSY })
	if !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > busyLimit/2 {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}

func TestParseDevice(t *testing.T) {
	if got, err := parseDevice("240:7\n"); err != nil || unix.Major(got) != 240 || unix.Minor(got) != 7 {
		t.Errorf("got %#x, %v", got, err)
	}
	for _, bad := range []string{"", "240", ":", "a:1", "1:b", "-1:2", "5000:1", "1:2000000"} {
		if _, err := parseDevice(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	want := state{Version: stateVersion, NetNS: "/run/netns/x", Namespace: identity{1, 2, 3}, Next: 1, Links: []record{
		{Index: 2, Name: "eth0", MAC: "52:54:00:00:00:01", Tap: "tap0_cloister", Model: ModelTC, QueueLen: 1000, OwnQdisc: true},
	}}
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(path)
	if err != nil || got.Namespace != want.Namespace || len(got.Links) != 1 || got.Links[0] != want.Links[0] {
		t.Errorf("got %+v, %v", got, err)
	}
	text := func(change func(*state)) string {
		s := want
		s.Links = []record{want.Links[0]}
		change(&s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, bad := range map[string]string{
		"empty": "", "half": `{"version":1,`, "version": text(func(s *state) { s.Version = 2 }), "path": text(func(s *state) { s.NetNS = "x" }),
		"another's link": text(func(s *state) { s.Links[0].Tap = "eth0" }), "index": text(func(s *state) { s.Links[0].Index = 0 }),
		"name": text(func(s *state) { s.Links[0].Name = "../x" }), "model": text(func(s *state) { s.Links[0].Model = "x" }),
		"queue length": text(func(s *state) { s.Links[0].QueueLen = -1 }), "size": strings.Repeat(" ", stateLimit+1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Cleanup(t.Context(), path); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: what cannot be read must stay for a person to look at: %v", name, err)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1,"netns":"/x","links":[{"index":2,"name":"eth0","tap":"tap0_cloister","model":"tcfilter"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b)
		if err != nil {
			return
		}
		for _, r := range s.Links {
			if !isOurName(r.Tap) || r.Index < 1 {
				t.Errorf("accepted %+v", r)
			}
		}
	})
}

func FuzzParseAddr(f *testing.F) {
	f.Add([]byte{2, 24, 0x80, 0, 2, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2})
	f.Add([]byte{10, 64, 0x80, 0, 2, 0, 0, 0, 20, 0, 1, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAddr(b)
		if err != nil {
			return
		}
		if ones, bits := a.Mask.Size(); bits != 8*len(a.IP) || ones < 0 {
			t.Errorf("accepted %v", a)
		}
		_ = a.String()
	})
}

func TestFromSpec(t *testing.T) {
	spec := func(namespaces ...*agent.LinuxNamespace) *agent.Spec {
		return &agent.Spec{Linux: &agent.Linux{Namespaces: namespaces}}
	}
	network := func(path string) *agent.LinuxNamespace { return &agent.LinuxNamespace{Type: "network", Path: path} }
	if path, err := FromSpec(spec(network("/run/netns/x"), &agent.LinuxNamespace{Type: "pid"})); path != "/run/netns/x" || err != nil {
		t.Errorf("got %q, %v", path, err)
	}
	for _, s := range []*agent.Spec{{}, spec(&agent.LinuxNamespace{Type: "pid"})} {
		if _, err := FromSpec(s); !errors.Is(err, ErrHostNetwork) {
			t.Errorf("got %v, expected ErrHostNetwork", err)
		}
	}
	for _, s := range []*agent.Spec{spec(network("/a"), network("/a")), spec(network("x"))} {
		if path, err := FromSpec(s); err == nil || errors.Is(err, ErrHostNetwork) {
			t.Errorf("got %q, %v", path, err)
		}
	}
	if err := Remove(filepath.Join(t.TempDir(), "never")); err != nil {
		t.Error(err)
	}
}
