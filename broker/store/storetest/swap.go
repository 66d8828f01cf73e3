package storetest

import (
	"errors"
	"sync"
	"testing"

	"github.com/cloister/cloister/broker/store"
)

// swapSeveral changes several keys at once: all, or none.
func swapSeveral(t *testing.T, s store.Store) {
	ctx := t.Context()
	const ns = store.ReferenceValues
	load := func(key string) store.Entry {
		t.Helper()
		e, err := s.Load(ctx, ns, key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		return e
	}
	if err := s.Swap(ctx, ns, map[string]store.Change{
		"a": {Absent: true, Value: []byte("1")}, "b": {Absent: true, Value: []byte("1")}, "c": {Absent: true, Value: []byte{}},
	}); err != nil {
		t.Fatal(err)
	}
	a, b, c := load("a"), load("b"), load("c")
	if string(a.Value) != "1" || string(b.Value) != "1" || c.Version == 0 {
		t.Fatalf("made %q, %q, %+v", a.Value, b.Value, c)
	}
	for name, changes := range map[string]map[string]store.Change{
		"one is there":     {"a": {Version: a.Version, Value: []byte("2")}, "b": {Absent: true, Value: []byte("2")}},
		"one is not there": {"a": {Version: a.Version, Value: []byte("2")}, "z": {Version: 1, Value: []byte("2")}},
		"one is changed":   {"a": {Version: a.Version}, "b": {Version: a.Version, Value: []byte("2")}},
		"one is removed":   {"a": {Version: a.Version}, "z": {Version: 1}},
	} {
		if err := s.Swap(ctx, ns, changes); !errors.Is(err, store.ErrChanged) {
			t.Errorf("%s: %v, want %v", name, err, store.ErrChanged)
		}
		if string(load("a").Value) != "1" || string(load("b").Value) != "1" {
			t.Errorf("%s: some of it was written", name)
		}
	}
	if err := s.Swap(ctx, ns, map[string]store.Change{"a": {Version: a.Version}, "b": {Version: b.Version, Value: []byte("2")}}); err != nil {
		t.Fatal(err)
	}
	if e := load("b"); load("a").Value != nil || string(e.Value) != "2" || e.Version == b.Version {
		t.Errorf("after the swap: %q and %q", load("a").Value, e.Value)
	}
	for name, bad := range map[string]map[string]store.Change{
		"no key": {"": {Absent: true, Value: []byte("x")}}, "removed and absent": {"q": {Absent: true}},
		"large": {"q": {Absent: true, Value: make([]byte, store.MaxValue+1)}},
	} {
		if err := s.Swap(ctx, ns, bad); err == nil || errors.Is(err, store.ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Many writers that each add one to two numbers lose nothing, and the numbers are always the same.
	if err := s.Put(ctx, ns, map[string][]byte{"x": {0}, "y": {0}}); err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 8
	var wait sync.WaitGroup
	for range writers {
		wait.Go(func() {
			for done := 0; done < each; {
				x, errX := s.Load(ctx, ns, "x")
				y, errY := s.Load(ctx, ns, "y")
				if err := errors.Join(errX, errY); err != nil {
					t.Error(err)
					return
				}
				err := s.Swap(ctx, ns, map[string]store.Change{
					"y": {Version: y.Version, Value: []byte{y.Value[0] + 1}}, "x": {Version: x.Version, Value: []byte{x.Value[0] + 1}},
				})
				if err == nil {
					done++
				} else if !errors.Is(err, store.ErrChanged) {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if x, y := load("x").Value[0], load("y").Value[0]; x != writers*each || y != x {
		t.Errorf("counted %d and %d, want %d", x, y, writers*each)
	}
	for _, key := range []string{"b", "c", "x", "y"} {
		if err := s.Delete(ctx, ns, key); err != nil {
			t.Error(err)
		}
	}
}
