package server

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what one address can ask for, so that one client cannot fill the audit log, take every session or keep every
// processor busy. Requests of administrators count as well: their tokens are only looked at after this.
type Limits struct {
	// PerSecond and Burst are of one address; zero means no limit.
	PerSecond float64
	Burst     int
	// Attestations is how many are verified at the same time; zero means no limit.
	Attestations int
}

// maxAddresses bounds the memory of the limiter.
const maxAddresses = 16384

type limiter struct {
	limits Limits
	now    func() time.Time

	mu    sync.Mutex
	by    map[string]*rate.Limiter
	slots chan struct{}
}

func newLimiter(l Limits, now func() time.Time) *limiter {
	m := &limiter{limits: l, now: now, by: map[string]*rate.Limiter{}}
	if l.Attestations > 0 {
		m.slots = make(chan struct{}, l.Attestations)
	}
	return m
}

// admit reports whether an address may make one more request now.
func (m *limiter) admit(address string) bool {
	if m.limits.PerSecond <= 0 {
		return true
	}
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	one, ok := m.by[address]
	if !ok {
		if len(m.by) >= maxAddresses {
			m.forget(now)
		}
		one = rate.NewLimiter(rate.Limit(m.limits.PerSecond), m.limits.Burst)
		m.by[address] = one
	}
	return one.AllowN(now, 1)
}

// forget drops addresses that have not asked for a while; when all have, it drops all: a flood from everywhere is not stopped
// by counting addresses.
func (m *limiter) forget(now time.Time) {
	for address, one := range m.by {
		if one.TokensAt(now) >= float64(m.limits.Burst) {
			delete(m.by, address)
		}
	}
	if len(m.by) >= maxAddresses {
		clear(m.by)
	}
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
	return strings.HasPrefix(path, "/kbs/") || strings.HasPrefix(path, "/cloister/") || strings.HasPrefix(path, "/ns/")
}
