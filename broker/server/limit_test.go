package server

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	m := newLimiter(Limits{PerSecond: 2, Burst: 1}, func() time.Time { return now })
	if !m.admit("192.0.2.1") || m.admit("192.0.2.1") || !m.admit("192.0.2.2") {
		t.Error("want one request of each address")
	}
	if !m.admit("2001:db8::1") || m.admit("2001:db8::2") || !m.admit("2001:db8:0:1::1") {
		t.Error("want one request of each IPv6 network")
	}
	if got := newLimiter(Limits{}, time.Now); !got.admit("a") {
		t.Error("no limit limits")
	}
}

func TestSlots(t *testing.T) {
	m := newLimiter(Limits{Attestations: 1}, time.Now)
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
