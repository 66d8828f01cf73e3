package server

import (
	"context"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	m := newLimiter(Limits{PerSecond: 2, Burst: 3}, func() time.Time { return now })
	count := func(address string, tries int) (n int) {
		for range tries {
			if m.admit(address) {
				n++
			}
		}
		return n
	}
	if got := count("a", 10); got != 3 {
		t.Errorf("%d of a burst of 10 are admitted, want 3", got)
	}
	if got := count("b", 1); got != 1 {
		t.Error("one address is held back by another")
	}
	now = now.Add(time.Second)
	if got := count("a", 10); got != 2 {
		t.Errorf("%d are admitted after a second, want 2", got)
	}
	for i := range 3 * maxAddresses {
		m.admit(fmt.Sprint(i))
	}
	if len(m.by) > maxAddresses {
		t.Errorf("%d addresses are kept, want at most %d", len(m.by), maxAddresses)
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
