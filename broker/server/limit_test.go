package server

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	m := NewLimiter(Limits{PerSecond: 2, Burst: 1}, func() time.Time { return now })
	if !m.admit("192.0.2.1") || m.admit("192.0.2.1") || !m.admit("192.0.2.2") {
		t.Error("want one request of each address")
	}
	if !m.admit("2001:db8::1") || m.admit("2001:db8::2") || !m.admit("2001:db8:0:1::1") {
		t.Error("want one request of each IPv6 network")
	}
	if got := NewLimiter(Limits{}, time.Now); !got.admit("a") {
		t.Error("no limit limits")
	}
}

func TestSlots(t *testing.T) {
	m := NewLimiter(Limits{Attestations: 1}, time.Now)
	r := httptest.NewRequest("POST", "/kbs/v0/attest", nil)
	release, ok := m.slot(r)
	if !ok {
		t.Fatal("the only slot is not given")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := m.slot(r.WithContext(ctx)); ok {
		t.Error("a second slot is given")
	}
	release()
	if _, ok := m.slot(r); !ok {
		t.Error("a slot that was given back is not given again")
	}
}

// TestBodies: what bodies take of the memory is bounded for all together and for one address; small ones are always taken.
func TestBodies(t *testing.T) {
	m := NewLimiter(Limits{}, time.Now)
	take := func(path, address string, size int64) (func(), int64, bool) {
		r := httptest.NewRequest("POST", path, nil)
		r.ContentLength = size
		return m.body(r, address)
	}
	var releases []func()
	most := func(path, address string, size int64) (n int) {
		for ; n < 1000; n++ {
			release, _, ok := take(path, address, size)
			if !ok {
				return n
			}
			releases = append(releases, release)
		}
		return n
	}
	if n := most("/kbs/v0/attest", "192.0.2.1", MaxAttestation); n != maxBodiesOfOne/MaxAttestation {
		t.Errorf("one address has %d large attestations under way", n)
	}
	if n := most("/kbs/v0/resource/a/b/c", "192.0.2.1", -1); n != 0 {
		t.Errorf("and %d bodies of unknown length besides", n)
	}
	if n := most("/kbs/v0/resource/a/b/c", "192.0.2.2", -1); n != maxBodiesOfOne/MaxBody {
		t.Errorf("another address has %d bodies of unknown length under way", n)
	}
	if _, _, ok := take("/kbs/v0/attest", "192.0.2.3", MaxBody); ok {
		t.Error("more is taken than all together may have")
	}
	if _, limit, ok := take("/kbs/v0/attest", "192.0.2.1", smallBody); !ok || limit != MaxBody {
		t.Error("a small body is refused")
	}
	for _, release := range releases {
		release()
	}
	if m.bodies != 0 || len(m.by) != 0 {
		t.Errorf("%d bytes and %d addresses are left", m.bodies, len(m.by))
	}
	for _, tc := range []struct {
		path        string
		size, limit int64
	}{{"/kbs/v0/attest", 5 << 20, MaxAttestation}, {"/kbs/v0/attest", -1, MaxBody}, {"/kbs/v0/auth", 5 << 20, MaxBody}, {"/kbs/v0/attest", 1 << 40, MaxAttestation}} {
		release, limit, ok := take(tc.path, "192.0.2.1", tc.size)
		if !ok || limit != tc.limit {
			t.Errorf("%s with %d bytes: at most %d, want %d", tc.path, tc.size, limit, tc.limit)
			continue
		}
		release()
	}
}
