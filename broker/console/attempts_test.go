package console

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/ratelimit"
)

// TestAttemptsOfAddresses: attempts are counted under who makes them, not under the proxy, and under the network of IPv6 addresses.
func TestAttemptsOfAddresses(t *testing.T) {
	proxies, err := ratelimit.ParseProxies([]string{"10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	c := &Console{Parts: Parts{Remote: proxies.Client}, attempts: newAttempts(func() time.Time { return time.Unix(0, 0) })}
	admit := func(peer, forwarded string) bool {
		r := httptest.NewRequest("POST", "/console/sign-in", nil)
		r.RemoteAddr = peer
		if forwarded != "" {
			r.Header.Set("X-Forwarded-For", forwarded)
		}
		return c.attempts.admit(c.address(r))
	}
	for range addressBurst {
		admit("10.0.0.1:1", "192.0.2.1")
		admit("[2001:db8::1]:1", "")
	}
	if admit("10.0.0.1:1", "192.0.2.1") || !admit("10.0.0.1:1", "192.0.2.2") {
		t.Error("behind a proxy all share the attempts of one")
	}
	if admit("[2001:db8::2]:1", "") || !admit("[2001:db8:0:1::1]:1", "") {
		t.Error("each address of an IPv6 network has attempts of its own")
	}
	if admit("192.0.2.9:1", "192.0.2.10"); c.attempts.by["192.0.2.9"] == nil {
		t.Error("a client chooses the address it is counted under")
	}
}
