package session

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestAttestOnce(t *testing.T) {
	m := NewManager(time.Now, 0, 0)
	s, err := m.New(t.Context(), "tpm", "", "sha384", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := s.Attest(t.Context(), func(context.Context) (string, string, error) { return "", "", errors.New("no") }); err == nil {
		t.Fatal("a failed attestation succeeds")
	}
	if _, ok := s.Token(); ok {
		t.Fatal("a failed attestation leaves a token")
	}
	var ran atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			tok, _, _, err := s.Attest(t.Context(), func(context.Context) (string, string, error) { ran.Add(1); return "token", "id", nil })
			if err != nil || tok != "token" {
				t.Errorf("token %q, %v", tok, err)
			}
		})
	}
	wait.Wait()
	if n := ran.Load(); n != 1 {
		t.Errorf("attested %d times, want once", n)
	}
}

func TestTokensAreBounded(t *testing.T) {
	m := NewManager(time.Now, 0, 0)
	large := string(make([]byte, maxTokens/2))
	for i, fits := range []bool{true, true, false} {
		s, err := m.New(t.Context(), "tpm", "", "sha384", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _, _, err = s.Attest(t.Context(), func(context.Context) (string, string, error) { return large, "id", nil })
		if fits != (err == nil) || !fits && !errors.Is(err, ErrFull) {
			t.Errorf("token %d: %v", i, err)
		}
	}
}

// TestTokensOfGoneSessions: what expired sessions took is there for others, whoever notices that they are expired.
func TestTokensOfGoneSessions(t *testing.T) {
	var now atomic.Int64
	m := NewManager(func() time.Time { return time.Unix(now.Load(), 0) }, time.Minute, 2)
	large := string(make([]byte, maxTokens))
	attest := func(during func()) (string, error) {
		s, err := m.New(t.Context(), "tpm", "", "sha384", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _, _, err = s.Attest(t.Context(), func(context.Context) (string, string, error) { during(); return large, "id", nil })
		return s.ID, err
	}
	later := func() { now.Add(60) }
	for i, gone := range []func(id string){
		func(id string) { later(); _, _ = m.Get(t.Context(), id) }, // seen by the guest itself
		func(string) { later(); m.mu.Lock(); defer m.mu.Unlock(); m.sweep() },
	} {
		id, err := attest(func() {})
		if err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		if _, err := attest(func() {}); !errors.Is(err, ErrFull) {
			t.Errorf("a second large token: %v", err)
		}
		gone(id)
	}
	m.sweep()
	if _, err := attest(func() { later(); m.mu.Lock(); defer m.mu.Unlock(); m.sweep() }); err != nil {
		t.Errorf("expired while it attested: %v", err)
	}
	if m.tokens != 0 || m.Len() != 0 {
		t.Errorf("%d bytes of %d sessions are counted, want none", m.tokens, m.Len())
	}
}

func TestSweep(t *testing.T) {
	var now atomic.Int64
	m := NewManager(func() time.Time { return time.Unix(now.Load(), 0) }, time.Minute, 3)
	ids := map[string]bool{}
	for range 3 {
		s, err := m.New(t.Context(), "tpm", "", "sha384", nil)
		if err != nil {
			t.Fatal(err)
		}
		ids[s.ID] = true
		if len(s.ID) != 32 || len(s.Nonce) != 44 {
			t.Errorf("session %s has nonce %s", s.ID, s.Nonce)
		}
	}
	if len(ids) != 3 {
		t.Error("ids repeat")
	}
	if _, err := m.New(t.Context(), "tpm", "", "sha384", nil); !errors.Is(err, ErrFull) {
		t.Errorf("fourth session: %v", err)
	}
	now.Store(60)
	for id := range ids {
		if _, err := m.Get(t.Context(), id); !errors.Is(err, ErrExpired) {
			t.Errorf("old session: %v", err)
		}
		break
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx, time.Millisecond) }()
	for m.Len() > 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("the sweeper does not sweep")
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	<-ended
	if _, err := m.Get(t.Context(), "nothing"); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown session: %v", err)
	}
}
