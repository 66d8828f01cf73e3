// Package storetest holds back ends of store to what store.Store says.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// Run tests an empty store. wait lets time pass on the clock of the store.
func Run(t *testing.T, s store.Store, wait func(time.Duration)) {
	t.Run("values", func(t *testing.T) { values(t, s) })
	t.Run("order", func(t *testing.T) { order(t, s) })
	t.Run("append", func(t *testing.T) { appends(t, s) })
	t.Run("swap", func(t *testing.T) { swap(t, s) })
	t.Run("swap several", func(t *testing.T) { swapSeveral(t, s) })
	t.Run("one winner", func(t *testing.T) { oneWinner(t, s) })
	t.Run("expiry", func(t *testing.T) { expiry(t, s, wait) })
	t.Run("limits", func(t *testing.T) { limits(t, s) })
}

func values(t *testing.T, s store.Store) {
	ctx := t.Context()
	if err := s.Health(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, store.KBS, "a"); !errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExpired) {
		t.Errorf("absent key: %v", err)
	}
	if err := s.Put(ctx, store.KBS, map[string][]byte{"a": []byte("1"), "b": []byte("2"), "none": nil}); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get(ctx, store.KBS, "none"); err != nil || len(v) != 0 {
		t.Errorf("empty value: %q, %v", v, err)
	}
	if err := s.Put(ctx, store.KBS, map[string][]byte{"c": []byte("3"), "": []byte("4")}); err == nil {
		t.Error("an empty key is taken")
	}
	if err := s.Put(ctx, store.KBS, map[string][]byte{"c": []byte("3"), strings.Repeat("k", 1025): []byte("4")}); err == nil {
		t.Error("a long key is taken")
	}
	if err := s.Put(ctx, store.KBS, map[string][]byte{"c": make([]byte, store.MaxValue+1)}); err == nil {
		t.Error("a value that is too large is taken")
	}
	if _, err := s.Get(ctx, store.KBS, "c"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("half of a refused write stayed: %v", err)
	}
	if made, err := s.PutNew(ctx, store.KBS, "a", []byte("9")); made || err != nil {
		t.Errorf("PutNew over a key: %v, %v", made, err)
	}
	if made, err := s.PutNew(ctx, store.KBS, "n", []byte("9")); !made || err != nil {
		t.Errorf("PutNew: %v, %v", made, err)
	}
	if v, err := s.Get(ctx, store.KBS, "a"); err != nil || string(v) != "1" {
		t.Errorf("a = %q, %v", v, err)
	}
	if _, err := s.Get(ctx, store.Policies, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a key of another namespace: %v", err)
	}
	if err := s.Delete(ctx, store.KBS, "a"); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, store.KBS, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := s.Put(ctx, "nowhere", map[string][]byte{"a": nil}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("unknown namespace: %v", err)
	}
}

func order(t *testing.T, s store.Store) {
	ctx := t.Context()
	want := []string{"\x00", "A", "Z", "a", "a/b", "a\x00", "ä", "\xff\xfe"}
	pairs := map[string][]byte{}
	for _, k := range want {
		pairs[k] = []byte(k)
	}
	if err := s.Put(ctx, store.Policies, pairs); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := s.Each(ctx, store.Policies, func(k string, v []byte) error {
		got = append(got, k)
		if k != string(v) {
			t.Errorf("%q has the value %q", k, v)
		}
		return nil
	})
	// "a\x00" sorts before "a/b".
	want[4], want[5] = want[5], want[4]
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("order is %q, want %q, %v", got, want, err)
	}
	stop, calls := errors.New("stop"), 0
	if err := s.Each(ctx, store.Policies, func(string, []byte) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("stopped after %d calls: %v", calls, err)
	}
	for before, most := range map[string]int{"": len(want), "a": 3, "aa": 6, "\xff\xff": len(want), "\x00": 0} {
		got = nil
		err := s.Back(ctx, store.Policies, before, func(k string, v []byte) error {
			got = append(got, k)
			if k != string(v) {
				t.Errorf("%q has the value %q", k, v)
			}
			return nil
		})
		slices.Reverse(got)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want[:most]) {
			t.Errorf("back from %q: %q, want %q reversed, %v", before, got, want[:most], err)
		}
	}
	calls = 0
	if err := s.Back(ctx, store.Policies, "", func(string, []byte) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("back stopped after %d calls: %v", calls, err)
	}
	many := map[string][]byte{}
	for i := range 200 { // more than a back end asks for at once
		many[fmt.Sprintf("b%03d", i)] = []byte("x")
	}
	if err := s.Put(ctx, store.Policies, many); err != nil {
		t.Fatal(err)
	}
	calls = 0
	err = s.Back(ctx, store.Policies, "c", func(k string, _ []byte) error { calls++; return nil })
	if err != nil || calls != 206 {
		t.Errorf("back over many: %d calls, want 206, %v", calls, err)
	}
}

func appends(t *testing.T, s store.Store) {
	ctx := t.Context()
	for i := range 10 {
		if err := s.Append(ctx, store.Decisions, fmt.Sprintf("%02d", i), []byte("x"), 3); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Append(ctx, store.Decisions, "09", []byte("again"), 3); err != nil {
		t.Fatal(err)
	}
	var keys []string
	if err := s.Each(ctx, store.Decisions, func(k string, _ []byte) error { keys = append(keys, k); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(keys, " "); got != "07 08 09" {
		t.Errorf("kept %s, want 07 08 09", got)
	}
}

func swap(t *testing.T, s store.Store) {
	ctx := t.Context()
	seen := map[int64]bool{}
	version := func(step string) int64 {
		t.Helper()
		e, err := s.Load(ctx, store.Keys, "k")
		if err != nil {
			t.Fatal(err)
		}
		if seen[e.Version] {
			t.Errorf("%s: version %d comes back", step, e.Version)
		}
		seen[e.Version] = true
		return e.Version
	}
	if _, err := s.CompareAndSwap(ctx, store.Keys, "k", 1, nil, store.Limit{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("swap of an absent key: %v", err)
	}
	if err := s.Put(ctx, store.Keys, map[string][]byte{"k": []byte("1")}); err != nil {
		t.Fatal(err)
	}
	first := version("put")
	next, err := s.CompareAndSwap(ctx, store.Keys, "k", first, []byte("2"), store.Limit{})
	if second := version("swap"); err != nil || next != second {
		t.Errorf("swap: version %d, want %d, %v", next, second, err)
	}
	if _, err := s.CompareAndSwap(ctx, store.Keys, "k", first, []byte("3"), store.Limit{}); !errors.Is(err, store.ErrChanged) {
		t.Errorf("swap of an old version: %v", err)
	}
	if err := s.Put(ctx, store.Keys, map[string][]byte{"k": []byte("4")}); err != nil {
		t.Fatal(err)
	}
	version("second put")
	if err := s.Delete(ctx, store.Keys, "k"); err != nil {
		t.Fatal(err)
	}
	if made, err := s.PutNew(ctx, store.Keys, "k", []byte("1")); !made || err != nil {
		t.Fatal(made, err)
	}
	version("put after delete")
	if _, err := s.CompareAndSwap(ctx, store.Keys, "k", first, []byte("3"), store.Limit{}); !errors.Is(err, store.ErrChanged) {
		t.Errorf("swap of a version from before the delete: %v", err)
	}
}

func oneWinner(t *testing.T, s store.Store) {
	ctx := t.Context()
	var made, swapped, lost atomic.Int32
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			e, err := s.Create(ctx, store.Keys, "race", nil, 0, store.Limit{})
			if err == nil {
				made.Add(1)
			} else if !errors.Is(err, store.ErrExists) {
				t.Error(err)
			}
			if e, err = s.Load(ctx, store.Keys, "race"); err != nil {
				t.Error(err)
			}
			switch _, err := s.CompareAndSwap(ctx, store.Keys, "race", e.Version, []byte("x"), store.Limit{}); {
			case err == nil:
				swapped.Add(1)
			case errors.Is(err, store.ErrChanged):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if made.Load() != 1 || swapped.Load() < 1 || swapped.Load()+lost.Load() != 16 {
		t.Errorf("%d made, %d swapped, %d lost", made.Load(), swapped.Load(), lost.Load())
	}
	e, err := s.Load(ctx, store.Keys, "race")
	if err != nil {
		t.Fatal(err)
	}
	swapped.Store(0)
	for range 16 {
		wait.Go(func() {
			if _, err := s.CompareAndSwap(ctx, store.Keys, "race", e.Version, []byte("y"), store.Limit{}); err == nil {
				swapped.Add(1)
			}
		})
	}
	wait.Wait()
	if swapped.Load() != 1 {
		t.Errorf("%d of 16 swaps of one version succeed, want 1", swapped.Load())
	}
}

func expiry(t *testing.T, s store.Store, wait func(time.Duration)) {
	ctx := t.Context()
	const life = 300 * time.Millisecond
	first, err := s.Create(ctx, store.Sessions, "e", []byte("1"), life, store.Limit{})
	if left := first.Expires.Sub(first.Now); err != nil || left <= 0 || left > life {
		t.Fatalf("expires in %s, want %s, %v", left, life, err)
	}
	if _, err := s.Create(ctx, store.Sessions, "e", []byte("2"), life, store.Limit{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	next, err := s.CompareAndSwap(ctx, store.Sessions, "e", first.Version, []byte("3"), store.Limit{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := s.Load(ctx, store.Sessions, "e"); err != nil || !e.Expires.Equal(first.Expires) || string(e.Value) != "3" {
		t.Errorf("after a swap: %q expires %s, want %s, %v", e.Value, e.Expires, first.Expires, err)
	}
	wait(life)
	if _, err := s.Load(ctx, store.Sessions, "e"); !errors.Is(err, store.ErrExpired) {
		t.Errorf("an expired value: %v", err)
	}
	if _, err := s.CompareAndSwap(ctx, store.Sessions, "e", next, nil, store.Limit{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("swap of an expired value: %v", err)
	}
	if err := s.Delete(ctx, store.Sessions, "e"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("delete of an expired value: %v", err)
	}
	if err := s.Each(ctx, store.Sessions, func(k string, _ []byte) error { return errors.New(k) }); err != nil {
		t.Errorf("an expired value is listed: %v", err)
	}
	if u, err := s.Usage(ctx, store.Sessions); err != nil || u != (store.Usage{Entries: 1, Bytes: 1}) {
		t.Errorf("usage is %v, %v", u, err)
	}
	again, err := s.Create(ctx, store.Sessions, "e", []byte("4"), 0, store.Limit{Entries: 1})
	if err != nil || again.Version == first.Version || !again.Expires.IsZero() {
		t.Errorf("made over an expired value: %+v, %v", again, err)
	}
	if _, err := s.Create(ctx, store.Sessions, "f", nil, life, store.Limit{}); err != nil {
		t.Fatal(err)
	}
	wait(life)
	if n, err := s.DeleteExpired(ctx, store.Sessions); err != nil || n != 1 {
		t.Errorf("%d swept, want 1, %v", n, err)
	}
	if _, err := s.Load(ctx, store.Sessions, "f"); !errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExpired) {
		t.Errorf("a swept value: %v", err)
	}
	if v, err := s.Get(ctx, store.Sessions, "e"); err != nil || string(v) != "4" {
		t.Errorf("a value for ever: %q, %v", v, err)
	}
	if err := s.Delete(ctx, store.Sessions, "e"); err != nil {
		t.Error(err)
	}
}

func limits(t *testing.T, s store.Store) {
	ctx := t.Context()
	limit := store.Limit{Entries: 20, Bytes: 100}
	var made atomic.Int32
	var wait sync.WaitGroup
	for i := range 60 {
		wait.Go(func() {
			switch _, err := s.Create(ctx, store.Sessions, fmt.Sprint(i), []byte("x"), time.Hour, limit); {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, store.ErrFull):
				t.Error(err)
			}
		})
	}
	wait.Wait()
	u, err := s.Usage(ctx, store.Sessions)
	if n := int(made.Load()); err != nil || n > 20 || u.Entries != n {
		t.Errorf("%d were made, %d are kept, at most 20 should be, %v", n, u.Entries, err)
	}
	for i := u.Entries; i < 20; i++ { // alone, nobody is refused
		if _, err := s.Create(ctx, store.Sessions, fmt.Sprint("more", i), []byte("x"), time.Hour, limit); err != nil {
			t.Fatalf("value %d: %v", i, err)
		}
	}
	if _, err := s.Create(ctx, store.Sessions, "over", []byte("x"), time.Hour, limit); !errors.Is(err, store.ErrFull) {
		t.Errorf("value 21: %v", err)
	}
	if _, err := s.Load(ctx, store.Sessions, "over"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a refused value is there: %v", err)
	}
	limit.Entries = 0
	if _, err := s.Create(ctx, store.Sessions, "long", bytes.Repeat([]byte("x"), 81), time.Hour, limit); !errors.Is(err, store.ErrFull) {
		t.Errorf("byte 101: %v", err)
	}
	e, err := s.Create(ctx, store.Sessions, "short", nil, time.Hour, limit)
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("x"), 81)
	if _, err := s.CompareAndSwap(ctx, store.Sessions, "short", e.Version, long, limit); !errors.Is(err, store.ErrFull) {
		t.Errorf("swap to 101 bytes: %v", err)
	}
	if _, err := s.CompareAndSwap(ctx, store.Sessions, "short", e.Version, bytes.Repeat([]byte("x"), 80), limit); err != nil {
		t.Errorf("swap to 100 bytes: %v", err)
	}
}
