package refstore

import (
	"fmt"
	"strings"
	"testing"
)

// TestKnown: a record that was looked up before says what it says at the time of asking, and what is stored now.
func TestKnown(t *testing.T) {
	w := newWorld(t)
	w.register(Message{Mode: "add"}, `{"a":["old"]}`)
	w.on(100)
	w.register(Message{Mode: "add"}, `{"a":["new"]}`)
	w.is("a", `["old","new"]`)
	w.is("a", `["old","new"]`)
	w.on(365)
	w.is("a", `["new"]`)
	w.on(364) // a clock that was set back
	w.is("a", `["old","new"]`)
	w.on(465)
	w.is("a", "")
	w.on(364)
	w.is("a", `["old","new"]`)
	r, err := w.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	r.Name, r.Value, r.Elements = "other", nil, nil
	w.is("a", `["old","new"]`)
	w.register(Message{}, `{"a":["third"]}`)
	w.is("a", `["third"]`)
	if err := w.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.is("a", "")
}

func TestKnownIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxKnown + 10 {
		raw := fmt.Appendf(nil, `{"name":"n","expiration":"2027-01-01T00:00:00Z","value":%d}`, i)
		r, err := w.known.live(fmt.Sprint(i), raw, w.now)
		if err != nil || string(r.Value) != fmt.Sprint(i) {
			t.Fatalf("record %d is %v, %v", i, r, err)
		}
	}
	long := fmt.Appendf(nil, `{"name":"n","expiration":"2027-01-01T00:00:00Z","value":%q}`, strings.Repeat("x", maxKnownBytes))
	if _, err := w.known.live("long", long, w.now); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.known.seen["long"]; ok || len(w.known.seen) != maxKnown {
		t.Errorf("%d records are known, the long one: %t; want %d and not that", len(w.known.seen), ok, maxKnown)
	}
}
