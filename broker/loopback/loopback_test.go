package loopback

import "testing"

func TestIs(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost": true, "127.0.0.1": true, "127.8.9.1": true, "::1": true, "::ffff:127.0.0.1": true,
		"": false, "0.0.0.0": false, "::": false, "localhost.example": false, "x.localhost": false, "127.0.0.1.example": false, "[::1]": false,
		"127.1": false, "2130706433": false, "10.0.2.2": false, "127.0.0.1:80": false, "fe80::1%lo": false,
	} {
		if Is(host) != want {
			t.Errorf("Is(%q) is %v", host, !want)
		}
	}
}
