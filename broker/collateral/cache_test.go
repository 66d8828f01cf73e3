package collateral

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestManyCallersOneFetch(t *testing.T) {
	a := newAuthority(t)
	src := &fake{name: "A", gate: make(chan struct{}), entered: make(chan struct{}, 200), do: always(a.crl(t, start0, time.Hour*24), nil)}
	c := open(t, Options{Now: newClock().now}, src)
	const callers = 100
	var wg sync.WaitGroup
	errs := make(chan error, callers)
	for range callers {
		wg.Go(func() {
			it, err := c.Get(context.Background(), Query{Key: crlKey})
			if err == nil && len(it.Data) == 0 {
				err = errors.New("got nothing")
			}
			errs <- err
		})
	}
	<-src.entered
	close(src.gate)
	wg.Wait()
	for range callers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if n := src.called(); n != 1 {
		t.Errorf("%d callers made %d fetches, want 1", callers, n)
	}
	get(t, c, crlKey)
	if s := c.Stats(); s.Fetches != 1 || s.Hits == 0 || s.Entries != 1 || s.Sources[0].Answered != 1 {
		t.Errorf("counters are %+v", s)
	}
}

func TestImpatientCallerDoesNotFailOthers(t *testing.T) {
	a := newAuthority(t)
	src := &fake{name: "A", gate: make(chan struct{}), entered: make(chan struct{}, 9), do: always(a.crl(t, start0, time.Hour), nil)}
	c := open(t, Options{Now: newClock().now}, src)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() { _, err := c.Get(ctx, Query{Key: crlKey}); first <- err }()
	<-src.entered
	second := make(chan error, 1)
	go func() { _, err := c.Get(context.Background(), Query{Key: crlKey}); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled caller got %v", err)
	}
	close(src.gate)
	if err := <-second; err != nil {
		t.Errorf("the other caller got %v", err)
	}
	if src.called() != 1 {
		t.Errorf("%d fetches, want 1", src.called())
	}
}

func TestRevocationsAreNeverStale(t *testing.T) {
	a, now := newAuthority(t), newClock()
	src := &fake{name: "A", do: always(a.crl(t, start0, 10*time.Hour), nil)}
	c := open(t, Options{Now: now.now, MaxStale: 1000 * time.Hour, Dir: t.TempDir()}, src)
	get(t, c, crlKey)

	// Due for a refresh and the source is down: good until its own end, with the reason.
	src.set(fails(&BusyError{Err: errors.New("down")}))
	now.add(7 * time.Hour)
	it := get(t, c, crlKey)
	if it.Outage == nil || !strings.Contains(it.Outage.Error(), "A: down") {
		t.Errorf("outage is %v", it.Outage)
	}
	now.add(4 * time.Hour)
	_, err := c.Get(context.Background(), Query{Key: crlKey})
	if err == nil || !strings.Contains(err.Error(), "the one held ended 2026-03-01T22:00:00Z") {
		t.Errorf("an expired list: error %v", err)
	}
	// A source that serves the old one is no help either.
	src.set(always(a.crl(t, start0, 10*time.Hour), nil))
	now.add(time.Hour)
	if _, err = c.Get(context.Background(), Query{Key: crlKey}); err == nil || !strings.Contains(err.Error(), "A: the one it has ended") {
		t.Errorf("an expired list from a source: error %v", err)
	}
	// Nor is the file after a restart.
	again := open(t, Options{Now: now.now, MaxStale: 1000 * time.Hour, Dir: c.o.Dir})
	if _, err := again.Get(context.Background(), Query{Key: crlKey}); err == nil {
		t.Error("an expired list was served from disk")
	}
	src.set(always(a.crl(t, now.now(), 10*time.Hour), nil))
	now.add(time.Hour)
	if it := get(t, c, crlKey); it.Outage != nil {
		t.Errorf("after the outage: %v", it.Outage)
	}
}

// TestRevocationRefreshIsAwaited: callers wait for a list that is due, where other documents are served and refreshed behind.
func TestRevocationRefreshIsAwaited(t *testing.T) {
	a, now := newAuthority(t), newClock()
	src := &fake{name: "A"}
	src.set(func(q Query) (*Answer, error) {
		if q.Key.Kind == AMDCRL {
			return &Answer{Data: a.crl(t, now.now(), 48*time.Hour)}, nil
		}
		return &Answer{Data: tcbInfo(now.now(), 30*24*time.Hour), Chain: a.pem}, nil
	})
	c := open(t, Options{Now: now.now}, src)
	oldCRL, oldTCB := get(t, c, crlKey), get(t, c, tcbKey)
	now.add(25 * time.Hour)
	if it := get(t, c, crlKey); !it.Issued.After(oldCRL.Issued) {
		t.Error("the old list was served although a new one was due and there")
	}
	src.mu.Lock()
	src.gate, src.entered = make(chan struct{}), make(chan struct{}, 9)
	src.mu.Unlock()
	if it := get(t, c, tcbKey); !it.Issued.Equal(oldTCB.Issued) {
		t.Error("TCB info waited for its refresh")
	}
	<-src.entered
	close(src.gate)
	c.running.Wait()
	if it := get(t, c, tcbKey); !it.Issued.After(oldTCB.Issued) {
		t.Error("the refresh in the background had no effect")
	}
}

func TestStaleTCBInfoWithinLimit(t *testing.T) {
	a, now := newAuthority(t), newClock()
	src := &fake{name: "A", do: always(tcbInfo(start0, 24*time.Hour), a.pem)}
	c := open(t, Options{Now: now.now, MaxStale: 10 * time.Hour}, src)
	get(t, c, tcbKey)
	src.set(fails(errors.New("status is 500")))
	now.add(30 * time.Hour)
	if it := get(t, c, tcbKey); it.Outage == nil || !strings.Contains(it.Outage.Error(), "status is 500") {
		t.Errorf("stale TCB info has outage %v", it.Outage)
	}
	now.add(5 * time.Hour)
	if _, err := c.Get(context.Background(), Query{Key: tcbKey}); err == nil {
		t.Error("TCB info was served 11 hours after its end, the limit is 10")
	}
	if s := c.Stats(); s.Outages != 1 {
		t.Errorf("%d outages are counted, want 1", s.Outages)
	}
	// A source that only has the expired one, within the limit: the policy decides.
	src.set(always(tcbInfo(now.now().Add(-time.Hour*26), 24*time.Hour), a.pem))
	c2 := open(t, Options{Now: now.now, MaxStale: 10 * time.Hour}, src)
	if it := get(t, c2, tcbKey); it.Outage == nil || !it.expired(now.now()) {
		t.Errorf("got %+v", it)
	}
}

func TestErrorNamesSourcesInOrder(t *testing.T) {
	one := &fake{name: "bundle x", do: fails(ErrNotFound)}
	two := &fake{name: "other vendor", do: fails(ErrNotCovered)}
	three := &fake{name: "AMD KDS", do: fails(&BusyError{Err: errors.New("status is 429 Too Many Requests"), Wait: 30 * time.Second})}
	four := &fake{name: "mirror", do: always([]byte("<html>Sign in</html>"), nil)}
	c := open(t, Options{Now: newClock().now}, one, two, three, four)
	_, err := c.Get(context.Background(), Query{Key: crlKey})
	want := `collateral amd-crl Milan/vcek: no source delivered it: bundle x: not found; ` +
		`AMD KDS: status is 429 Too Many Requests (asks to wait 30s); ` +
		`mirror: its answer is not what was asked for: got "<html>Sign in</html>", expected a revocation list`
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error is\n%v, want\n%s", err, want)
	}
	if c = open(t, Options{}); true {
		if _, err = c.Get(context.Background(), Query{Key: crlKey}); err == nil || !strings.Contains(err.Error(), "no configured source") {
			t.Errorf("without sources: %v", err)
		}
	}
}

func TestBusySourceIsLeftAlone(t *testing.T) {
	now := newClock()
	src := &fake{name: "A", do: fails(&BusyError{Err: errors.New("status is 429"), Wait: 30 * time.Second})}
	c := open(t, Options{Now: now.now, random: func() float64 { return 0.5 }}, src)
	ask := func(i int) error {
		_, err := c.Get(context.Background(), Query{Key: Key{Kind: RIM, Name: fmt.Sprint("id", i)}})
		return err
	}
	if err := ask(0); err == nil {
		t.Fatal("no error")
	}
	for i := range 20 {
		if err := ask(i); err == nil || !strings.Contains(err.Error(), "status is 429") {
			t.Fatalf("while the source is left alone: %v", err)
		}
	}
	if n := src.called(); n != 1 {
		t.Errorf("a source that asked to wait was asked %d times", n)
	}
	now.add(29 * time.Second)
	_ = ask(99)
	if n := src.called(); n != 1 {
		t.Errorf("it was asked %d times before its 30 s were over", n)
	}
	now.add(2 * time.Second)
	src.set(always(rimDoc, nil))
	if err := ask(99); err != nil {
		t.Errorf("after its time: %v", err)
	}
	if c.Stats().Sources[0].WaitUntil != (time.Time{}) {
		t.Error("the source still counts as waiting")
	}
}

func TestWaitsGrowWithJitter(t *testing.T) {
	last := time.Duration(0)
	for n := 1; n < 40; n++ {
		low, high := grow(time.Second, time.Minute, n, 0), grow(time.Second, time.Minute, n, 0.999999)
		if low >= high || high > time.Minute || low < last/2 || low < time.Second/2 {
			t.Errorf("after %d failures the wait is %s to %s, last %s", n, low, high, last)
		}
		last = high
	}
	if last < 50*time.Second {
		t.Errorf("the wait stops growing at %s", last)
	}
}

func TestFailuresOfOneDocument(t *testing.T) {
	now := newClock()
	src := &fake{name: "A", do: fails(errors.New("status is 500"))}
	c := open(t, Options{Now: now.now, random: func() float64 { return 0.5 }}, src)
	for range 10 {
		if _, err := c.Get(context.Background(), Query{Key: rimKey}); err == nil || !strings.Contains(err.Error(), "status is 500") {
			t.Fatal(err)
		}
	}
	if src.called() != 1 || c.Stats().Deferred != 9 {
		t.Errorf("asked %d times, %d deferred", src.called(), c.Stats().Deferred)
	}
	now.add(keyWaitMin)
	_, _ = c.Get(context.Background(), Query{Key: rimKey})
	if src.called() != 2 {
		t.Errorf("after the wait it was asked %d times, want 2", src.called())
	}
	// Another document is not concerned.
	src.set(always(rimDoc, nil))
	get(t, c, Key{Kind: RIM, Name: "other"})
}

func TestNegativesAreBounded(t *testing.T) {
	src := &fake{name: "A", do: fails(ErrNotFound)}
	c := open(t, Options{Now: newClock().now, MaxEntries: 50}, src)
	for i := range 500 {
		_, _ = c.Get(context.Background(), Query{Key: Key{Kind: RIM, Name: fmt.Sprint("id", i)}})
	}
	if n := c.Stats().NegativeKeys; n != 50 {
		t.Errorf("%d failures are remembered, want 50", n)
	}
	if len(c.negatives.byKey) != 50 {
		t.Errorf("the map has %d", len(c.negatives.byKey))
	}
}

func TestBounds(t *testing.T) {
	big := append(bytes.Clone(rimDoc), make([]byte, 100<<10)...)
	dir := t.TempDir()
	c := open(t, Options{Now: newClock().now, MaxBytes: 1 << 20, MaxEntries: 100, Dir: dir}, &fake{name: "A", do: always(big, nil)})
	for i := range 50 {
		get(t, c, Key{Kind: RIM, Name: fmt.Sprint("id", i)})
	}
	s := c.Stats()
	if s.Bytes > 1<<20 || s.Entries > 10 || s.Evictions < 40 {
		t.Errorf("counters are %+v", s)
	}
	if items, _, err := ReadDir(dir); err != nil || len(items) != s.Entries {
		t.Errorf("the disk has %d documents, memory %d (%v)", len(items), s.Entries, err)
	}
	get(t, c, Key{Kind: RIM, Name: "id49"})
	if c.Stats().Hits != 1 {
		t.Error("the latest document was evicted")
	}
}

func TestAnswersForOneUse(t *testing.T) {
	src := &fake{name: "A", do: always(rimDoc, nil)}
	c := open(t, Options{Now: newClock().now}, src)
	for range 2 {
		if _, err := c.Get(context.Background(), Query{Key: rimKey, NoStore: true}); err != nil {
			t.Fatal(err)
		}
	}
	if src.called() != 2 || c.Stats().Entries != 0 {
		t.Errorf("asked %d times, %d kept", src.called(), c.Stats().Entries)
	}
}

func TestRefreshTimes(t *testing.T) {
	for _, tc := range []struct {
		kind   Kind
		maxAge time.Duration
		lives  time.Duration
		want   time.Duration
	}{
		{VCEK, 0, 0, refreshMax},
		{VCEK, 1, 0, refreshMin},
		{VCEK, time.Hour, 0, time.Hour},
		{VCEK, 10000 * time.Hour, 0, refreshMax},
		{VCEK, 0, 2 * time.Hour, 2 * time.Hour},
		{AMDCRL, 100 * time.Hour, 0, refreshRevocation},
		{TCBInfo, 100 * time.Hour, 0, refreshJudged},
	} {
		it := &Item{Key: Key{Kind: tc.kind}, Fetched: start0}
		if tc.lives > 0 {
			it.Until = start0.Add(tc.lives)
		}
		if got := refresh(it, tc.maxAge).Sub(start0); got != tc.want {
			t.Errorf("%s with max-age %s and %s to live is refreshed after %s, want %s", tc.kind, tc.maxAge, tc.lives, got, tc.want)
		}
	}
}

func TestClosed(t *testing.T) {
	src := &fake{name: "A", gate: make(chan struct{}), entered: make(chan struct{}, 1), do: always(rimDoc, nil)}
	c := open(t, Options{Now: newClock().now}, src)
	done := make(chan error, 1)
	go func() { _, err := c.Get(context.Background(), Query{Key: rimKey}); done <- err }()
	<-src.entered
	c.Close()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a fetch that Close ended: %v", err)
	}
	if _, err := c.Get(context.Background(), Query{Key: rimKey}); err == nil {
		t.Error("a closed cache fetches")
	}
}

func TestKeys(t *testing.T) {
	for _, k := range []Key{
		{}, {Kind: "x", Name: "a"}, {Kind: RIM}, {Kind: RIM, Name: "../a"}, {Kind: RIM, Name: "a//b"}, {Kind: RIM, Name: "a/.."},
		{Kind: RIM, Name: "/a"}, {Kind: RIM, Name: "a?b"}, {Kind: RIM, Name: "a b"}, {Kind: RIM, Name: "a%2f"}, {Kind: RIM, Name: "ä"},
		{Kind: RIM, Name: strings.Repeat("a", 257)}, {Kind: RIM, Name: "a\x00"},
	} {
		if err := k.Validate(); err == nil {
			t.Errorf("key %q is accepted", k)
		}
		if _, err := open(t, Options{}).Get(context.Background(), Query{Key: k}); err == nil {
			t.Errorf("key %q is asked for", k)
		}
	}
}
