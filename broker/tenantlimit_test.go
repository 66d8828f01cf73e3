package broker

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/cloister/cloister/broker/config"
)

// TestStrangers: however many tenants are asked for that there are not, those that there are get served.
func TestStrangers(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits.RequestsPerSecond = 0 })
	a, _ := w.tenant("first", `{}`)
	g := w.guest()
	for i := range 400 {
		if status, answer := g.do("GET", fmt.Sprintf("/ns/stranger-%d/kbs/v0/resource/a/b/c", i), nil, nil); status != http.StatusNotFound {
			t.Fatalf("tenant %d that there is not: %d %s", i, status, answer)
		}
	}
	if _, err := a.ListResources(t.Context()); err != nil {
		t.Errorf("a tenant that there is: %v", err)
	}
	b, _ := w.tenant("second", `{}`)
	if _, err := b.ListResources(t.Context()); err != nil {
		t.Errorf("a tenant that was made just now: %v", err)
	}
}

// TestOneAddress: an address has no more requests when it asks several tenants, and does not use up what a tenant may ask.
func TestOneAddress(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits = config.Limits{RequestsPerSecond: 1, Burst: 30} })
	w.tenant("first", `{"requests_per_second":100}`)
	w.tenant("second", `{}`)
	g, held := w.guest(), 0
	for i := range 80 {
		path := []string{"/ns/first", "/ns/second", "/ns/third", ""}[i%4] + "/kbs/v0/resource/a/b/c"
		if status, _ := g.do("GET", path, nil, nil); status == http.StatusTooManyRequests {
			held++
		}
	}
	if held < 50 {
		t.Errorf("%d of 80 requests are held back, want at least 50", held)
	}
	w.b.tenants.mu.Lock()
	one := w.b.tenants.open["first"]
	w.b.tenants.mu.Unlock()
	if left := one.limiter.Tokens(); left < 900 {
		t.Errorf("the tenant may make %.0f of 1000 requests: those of an address that asked too often were counted", left)
	}
}
