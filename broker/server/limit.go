package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/ratelimit"
)

// Limits bound what one address can ask for, so that one client cannot fill the audit log, take every session or keep every
// processor busy. Requests of administrators count as well: their tokens are only looked at after this.
type Limits struct {
	// PerSecond and Burst are of one address (of an IPv6 address: its /64); zero means no limit.
	PerSecond float64
	Burst     int
	// Attestations is how many are verified at the same time; zero means no limit.
	Attestations int
}

type limiter struct {
	addresses *ratelimit.Limiter
	slots     chan struct{}
}

func newLimiter(l Limits, now func() time.Time) *limiter {
	m := &limiter{addresses: ratelimit.New(ratelimit.Limit{PerSecond: l.PerSecond, Burst: l.Burst}, ratelimit.MaxNames, now)}
	if l.Attestations > 0 {
		m.slots = make(chan struct{}, l.Attestations)
	}
	return m
}

// admit reports whether an address may make one more request now.
func (m *limiter) admit(address string) bool {
	ok, _ := m.addresses.Allow(ratelimit.Network(address))
	return ok
}

// slot waits for a place among the attestations under way and returns how to give it back; false when the client gave up first.
func (m *limiter) slot(r *http.Request) (func(), bool) {
	if m.slots == nil {
		return func() {}, true
	}
	select {
	case m.slots <- struct{}{}:
		return func() { <-m.slots }, true
	case <-r.Context().Done():
		return nil, false
	}
}

// limited says whether requests for a path count: probes of health and metrics do not.
func limited(path string) bool {
	return strings.HasPrefix(path, "/kbs/") || strings.HasPrefix(path, "/cloister/")
}
