package broker

import (
	"net"
	"testing"
)

func TestHere(t *testing.T) {
	for _, c := range []struct {
		ip    net.IP
		names []string
		want  string
	}{
		{net.IPv4(127, 0, 0, 1), []string{"localhost"}, "127.0.0.1:8080"},
		{net.IPv4zero, []string{"broker.example", "127.0.0.1"}, "127.0.0.1:8080"},
		{net.IPv6unspecified, []string{"broker.example", "::1"}, "[::1]:8080"},
		{net.IPv6unspecified, []string{"broker.example", "10.0.0.1"}, "broker.example:8080"},
		{net.IPv6unspecified, nil, "[::]:8080"},
	} {
		if got := here(&net.TCPAddr{IP: c.ip, Port: 8080}, c.names); got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.ip, c.names, got, c.want)
		}
	}
}
