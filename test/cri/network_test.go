package cri

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// network is two pods that talk to each other, to the host and through a port of the host, in IPv4 and IPv6.
func network(t *testing.T, w *world) {
	port := freePort(t)
	p := w.NewPod(t, w.handler, "server")
	p.Config.PortMappings = []*runtime.PortMapping{{Protocol: runtime.Protocol_TCP, ContainerPort: 8080, HostPort: int32(port)}}
	p.Run()
	server := p.RunContainer(t, Program("server", "serve"))
	server.Says("serving")
	shell := p.RunContainer(t, Shell("shell", Sleeper))
	status := p.Status().Network
	if len(status.AdditionalIps) != 1 {
		t.Fatalf("the addresses of a dual-stack pod are %v", status)
	}
	ip4, ip6 := status.Ip, status.AdditionalIps[0].Ip
	if strings.Contains(ip4, ":") {
		ip4, ip6 = ip6, ip4
	}
	get := func(address string) string {
		t.Helper()
		client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get("http://" + address + "/")
		if err != nil {
			t.Error(err)
			return ""
		}
		defer r.Body.Close()
		data, _ := io.ReadAll(io.LimitReader(r.Body, 1000))
		return string(data)
	}
	n := w.Daemon.Network
	if got := get(net.JoinHostPort(ip4, "8080")); got != fmt.Sprintf("server answers %s\n", n.Gateway()) {
		t.Errorf("from the host: %q", got)
	}
	if got := get(net.JoinHostPort(ip6, "8080")); !strings.HasPrefix(got, "server answers fd") { // from which of the host's addresses is the host's choice
		t.Errorf("from the host by IPv6: %q", got)
	}
	for _, host := range []string{"127.0.0.1", n.Gateway().String()} {
		if got := get(fmt.Sprint(host, ":", port)); !strings.HasPrefix(got, "server answers ") {
			t.Errorf("through the host's port at %s: %q", host, got)
		}
	}

	q := w.NewPod(t, w.handler, "client").Run()
	client := q.RunContainer(t, Program("client", "serve"))
	client.Says("serving")
	qip := q.IP()
	dial := func(args ...string) string {
		r := client.Exec(append([]string{"/testprog", "dial"}, args...)...)
		return r.Stdout + r.Stderr
	}
	for _, c := range []struct{ network, address, text, want string }{
		{"http", ip4 + ":8080", "", "server answers " + qip + "\n"},
		{"http", "[" + ip6 + "]:8080", "", ""},
		{"tcp", ip4 + ":7000", "over TCP", "over TCP\n"},
		{"tcp", "[" + ip6 + "]:7000", "over TCP 6", "over TCP 6\n"},
		{"udp", ip4 + ":7001", "over UDP", "over UDP\n"},
		{"udp", "[" + ip6 + "]:7001", "over UDP 6", "over UDP 6\n"},
		{"udp", ip4 + ":7001", strings.Repeat("fragments ", 800), strings.Repeat("fragments ", 800) + "\n"},
		{"http", fmt.Sprint(n.Gateway(), ":", port), "", ""},
	} {
		if got := dial(c.network, c.address, c.text); got != c.want && (c.want != "" || !strings.HasPrefix(got, "server answers ")) {
			t.Errorf("from pod to pod, %s %s: %.200q", c.network, c.address, got)
		}
	}
	host := hostServer(t, n.Gateway().String())
	if got := dial("http", host, ""); got != "the host answers "+qip+"\n" {
		t.Errorf("from pod to host: %q", got)
	}
	links(t, shell, ip4, ip6, n.Gateway().String())
	forwarding(t, p)
	q.Remove()
	p.Remove()
	if c, err := net.DialTimeout("tcp", fmt.Sprint(n.Gateway(), ":", port), time.Second); err == nil {
		c.Close()
		t.Error("the host's port is still forwarded")
	}
}

// links are what the pod sees of its network.
func links(t *testing.T, k *Container, ip4, ip6, gateway string) {
	got := k.Sh("ip addr show eth0; ip route; ip -6 route; cat /sys/class/net/eth0/mtu; ls /sys/class/net")
	for _, want := range []string{ip4 + "/24", ip6 + "/64", "default via " + gateway, "1500", "lo"} {
		if !strings.Contains(got, want) {
			t.Errorf("in the pod's network there is no %q:\n%s", want, got)
		}
	}
	if got := k.Sh("ls /sys/class/net | grep -v -e '^lo$' -e '^eth0$' -e '^sit0$' -e '^tunl0$' -e '^ip6tnl0$' -e '^bonding_masters$' || true"); got != "" {
		t.Errorf("the pod has more interfaces: %s", got)
	}
}

// forwarding is kubectl's port-forward.
func forwarding(t *testing.T, p *Pod) {
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	got, err := p.Forward(streamContext(t), 7000, data, int64(len(data)))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("of %d bytes through a forwarded port there came %d back, %v", len(data), len(got), err)
	}
	if got, err := p.Forward(streamContext(t), 8080, []byte("GET / HTTP/1.0\r\n\r\n"), 1<<20); !bytes.Contains(got, []byte("server answers 127.0.0.1")) {
		t.Errorf("HTTP through a forwarded port: %q, %v", got, err)
	}
	if got, err := p.Forward(streamContext(t), 1, nil, 1); err == nil || !strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "reset") {
		t.Errorf("forwarding to a port where nobody listens: %q, %v", got, err)
	}
}

// freePort is none of those, from 32768 on, that the kernel gives to whoever wants any: what the rules of a pod's port take away from another
// test would be missed there.
func freePort(t *testing.T) int {
	t.Helper()
	var err error
	for range 100 {
		port := 20000 + mathrand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp4", fmt.Sprint("127.0.0.1:", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal(err)
	return 0
}

// hostServer serves on an address of the host and says who asks.
func hostServer(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "the host answers %s\n", host)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}
