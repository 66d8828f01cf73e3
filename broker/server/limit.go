package server

import (
	"net/http"
	"strings"
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

type limiter struct {
	addresses *ratelimit.Limiter
	slots     chan struct{}
	large     chan struct{}
}

// maxLarge is how many attestations above MaxBody are taken in at the same time, which bounds what bodies take of the memory.
const maxLarge = 8

func newLimiter(l Limits, now func() time.Time) *limiter {
	m := &limiter{
		addresses: ratelimit.New(ratelimit.Limit{PerSecond: l.PerSecond, Burst: l.Burst}, ratelimit.MaxNames, now),
		large:     make(chan struct{}, maxLarge),
	}
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

// body returns how many bytes the body of a request may have, and how to give back what was taken for it. Only an attestation may be
// large, when there is a place for it at once; false is when there is none.
func (m *limiter) body(r *http.Request) (release func(), limit int64, ok bool) {
	if r.URL.Path != kbs.PathPrefix+"/attest" || r.ContentLength <= MaxBody {
		return func() {}, MaxBody, true
	}
	select {
	case m.large <- struct{}{}:
		return func() { <-m.large }, MaxAttestation, true
	default:
		return nil, 0, false
	}
}

// limited says whether requests for a path count: probes of health and metrics do not.
func limited(path string) bool {
	return strings.HasPrefix(path, "/kbs/") || strings.HasPrefix(path, "/cloister/") || strings.HasPrefix(path, "/ns/") || strings.HasPrefix(path, "/console")
}
