package token

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestIssued: that a token is known again spares it no check but that of its signature.
func TestIssued(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	key, next := SigningKey{Private: newKey(t)}, SigningKey{Private: newKey(t)}
	s, err := NewSigner(func() time.Time { return now }, time.Minute, key)
	if err != nil {
		t.Fatal(err)
	}
	issue := func() string {
		t.Helper()
		compact, err := s.Issue("id", map[string]any{"cpu0": map[string]any{"n": 1}})
		if err != nil {
			t.Fatal(err)
		}
		return compact
	}
	refused := func(compact, why string) {
		t.Helper()
		if claims, err := s.Verify(compact); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, %v", why, claims, err)
		}
	}
	compact := issue()
	if _, known := s.issued.payload(compact, *s.keys.Load()); !known {
		t.Error("a new token is not known")
	}
	known, err := s.Verify(compact)
	if err != nil {
		t.Fatal(err)
	}
	known["iss"] = "somebody" // what a caller does to its claims is its own affair
	other, err := NewSigner(func() time.Time { return now }, time.Minute, key)
	if err != nil {
		t.Fatal(err)
	}
	checked, err := other.Verify(compact)
	if err != nil {
		t.Fatalf("another broker with the same key: %v", err)
	}
	if known, err = s.Verify(compact); err != nil || fmt.Sprint(known) != fmt.Sprint(checked) {
		t.Errorf("known token gives %v, %v, the checked one %v", known, err, checked)
	}

	head, rest, _ := strings.Cut(compact, ".")
	body, signature, _ := strings.Cut(rest, ".")
	refused(head+"."+body+".", "no signature")
	refused(head+"."+body+"."+strings.Repeat("A", len(signature)), "another signature")
	refused(head+"."+body[:len(body)-4]+"."+signature, "other claims")

	now = now.Add(time.Minute)
	refused(compact, "expired")

	compact = issue()
	if err := s.SetKeys(next); err != nil {
		t.Fatal(err)
	}
	refused(compact, "its key was revoked")
	key.Until = now.Add(time.Second)
	if err := s.SetKeys(key, next); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(compact); err != nil {
		t.Errorf("its key is back: %v", err)
	}
	now = key.Until
	refused(compact, "its key has ended")
}

func TestIssuedIsBounded(t *testing.T) {
	var i issued
	key := newKey(t)
	keys := []usable{{SigningKey: SigningKey{Private: key}}}
	for n := range maxIssued + 2 {
		i.add(fmt.Sprintf("a.%04d.c", n), &key.PublicKey)
	}
	for n, want := range map[int]bool{0: false, 1: false, 2: true, maxIssued + 1: true} {
		if _, known := i.payload(fmt.Sprintf("a.%04d.c", n), keys); known != want {
			t.Errorf("token %d: known is %t, want %t", n, known, want)
		}
	}
	if len(i.by) != maxIssued || len(i.ring) != maxIssued {
		t.Errorf("%d tokens and %d places are kept, want %d", len(i.by), len(i.ring), maxIssued)
	}
}
