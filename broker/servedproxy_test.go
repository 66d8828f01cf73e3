package broker

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/config"
)

// from is a client with an address of its own on this machine.
func (s *served) from(address string) *http.Client {
	c := s.http()
	c.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
	return c
}

// stopped is a clock that stands still: what a client may ask comes back with time, one request in a second.
func stopped() func() time.Time {
	now := time.Now()
	return func() time.Time { return now }
}

// TestTrustedProxies: limits and records count the client that a trusted proxy names, and the sender of the header otherwise.
func TestTrustedProxies(t *testing.T) {
	const proxy, other = "127.0.0.2", "127.0.0.3"
	s := newServedAt(t, stopped(), func(_ string, c *config.Config) {
		c.Server.TrustedProxies = []string{proxy}
		c.Limits.RequestsPerSecond, c.Limits.Burst = 1, 8
	})
	status := func(from, forwarded string) int {
		t.Helper()
		code, _ := s.do(s.from(from), "GET", "/kbs/v0/resource/a/b/c", "", "X-Forwarded-For: "+forwarded)
		return code
	}
	exhaust := func(from, forwarded string) bool {
		t.Helper()
		for range 40 {
			if status(from, forwarded) == http.StatusTooManyRequests {
				return true
			}
		}
		return false
	}
	if !exhaust(proxy, "192.0.2.1") {
		t.Error("a client behind the proxy has no limit")
	}
	if code := status(proxy, "192.0.2.2"); code == http.StatusTooManyRequests {
		t.Error("clients behind the proxy share a limit")
	}
	// What the client wrote itself stands to the left and does not count.
	if !exhaust(proxy, "198.51.100.9, 192.0.2.3") || status(proxy, "198.51.100.10, 192.0.2.3") != http.StatusTooManyRequests {
		t.Error("a client gets out of its limit with a header of its own")
	}
	if !exhaust(other, "203.0.113.1") || status(other, "203.0.113.2") != http.StatusTooManyRequests {
		t.Error("who is no proxy gets out of its limit by the header")
	}
	if code, _ := s.do(s.from(proxy), "POST", s.ready.AttestationREST+"/policy", "{}", "X-Forwarded-For: 192.0.2.77"); code != http.StatusUnauthorized {
		t.Errorf("a stranger's policy by REST: %d", code)
	}
	seen := map[string]bool{}
	entries, err := s.admin.Audit(t.Context(), 0)
	s.must(err)
	for _, e := range entries {
		seen[e.Remote] = true
	}
	for address, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.3": true, "192.0.2.77": true, other: true,
		"198.51.100.9": false, "203.0.113.1": false, "203.0.113.2": false, proxy: false,
	} {
		if seen[address] != want {
			t.Errorf("%s is in the audit log: %v, want %v", address, seen[address], want)
		}
	}
}

// TestSignInsBehindAProxy: one who guesses tokens does not keep others out of the console.
func TestSignInsBehindAProxy(t *testing.T) {
	const proxy = "127.0.0.2"
	s := newServedAt(t, stopped(), func(_ string, c *config.Config) { c.Server.TrustedProxies = []string{proxy} })
	sign := func(client, token string) int {
		t.Helper()
		code, _ := s.do(s.from(proxy), "POST", "/console/sign-in", url.Values{"token": {token}}.Encode(),
			"Content-Type: application/x-www-form-urlencoded", "X-Forwarded-For: "+client)
		return code
	}
	for range 20 {
		sign("192.0.2.1", "guess")
	}
	if code := sign("192.0.2.1", "guess"); code != http.StatusTooManyRequests {
		t.Errorf("the guesser's next attempt: %d", code)
	}
	if code := sign("192.0.2.2", s.token()); code != http.StatusSeeOther {
		t.Errorf("somebody else signs in: %d", code)
	}
	if strings.Contains(s.log.String(), s.token()) {
		t.Error("the log has the token")
	}
}
