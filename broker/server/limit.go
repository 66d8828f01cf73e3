package server

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/wire/kbs"
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

// Limiter applies Limits. Realms share one: an address has no more of the broker when it asks several tenants.
type Limiter struct {
	addresses *ratelimit.Limiter
	slots     chan struct{}

	mu     sync.Mutex
	bodies int64            // bytes of all bodies under way that are not small
	by     map[string]int64 // the same by address
}

// What bodies take of the memory: those up to smallBody are bounded by the connections that a process can have; of the others, no more
// than so many bytes are taken in at the same time, and no more than half of that of one address. Who sends slowly has bodyTime.
const (
	smallBody      = 64 << 10
	maxBodies      = 128 << 20
	maxBodiesOfOne = maxBodies / 2
	bodyTime       = 20 * time.Second
)

// NewLimiter makes a Limiter.
func NewLimiter(l Limits, now func() time.Time) *Limiter {
	m := &Limiter{
		addresses: ratelimit.New(ratelimit.Limit{PerSecond: l.PerSecond, Burst: l.Burst}, ratelimit.MaxNames, now),
		by:        map[string]int64{},
	}
	if l.Attestations > 0 {
		m.slots = make(chan struct{}, l.Attestations)
	}
	return m
}

// admit reports whether an address may make one more request now.
func (m *Limiter) admit(address string) bool {
	ok, _ := m.addresses.Allow(ratelimit.Network(address))
	return ok
}

// slot waits for a place among the attestations under way and returns how to give it back; false when the client gave up first.
func (m *Limiter) slot(r *http.Request) (func(), bool) {
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

// body returns how many bytes the body of a request may have, and how to give back what was taken for it. Only an attestation that
// says its length may be large; false is when there is no room for it now.
func (m *Limiter) body(r *http.Request, address string) (release func(), limit int64, ok bool) {
	limit = MaxBody
	if r.URL.Path == kbs.PathPrefix+"/attest" && r.ContentLength > MaxBody {
		limit = MaxAttestation
	}
	size := r.ContentLength
	if size < 0 || size > limit { // a longer one is read up to the limit
		size = limit
	}
	if size <= smallBody {
		return func() {}, limit, true
	}
	name := ratelimit.Network(address)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bodies+size > maxBodies || m.by[name]+size > maxBodiesOfOne {
		return nil, 0, false
	}
	m.bodies += size
	m.by[name] += size
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.bodies -= size
		if m.by[name] -= size; m.by[name] == 0 {
			delete(m.by, name)
		}
	}, limit, true
}

// limited says whether requests for a path count: probes of health and metrics do not.
func limited(path string) bool {
	return strings.HasPrefix(path, "/kbs/") || strings.HasPrefix(path, "/cloister/") || strings.HasPrefix(path, "/ns/") || strings.HasPrefix(path, "/console")
}
