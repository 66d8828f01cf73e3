package collateral

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cloister/cloister/broker/span"
)

// Options bound a cache. The zero value of a member means its default.
type Options struct {
	// Dir is the folder of the entries on disk; empty keeps them in memory only.
	Dir string
	// MaxEntries and MaxBytes bound the documents held, in memory and on disk.
	MaxEntries int   // default 4096
	MaxBytes   int64 // default 64 MiB
	// MaxStale is how long past its nextUpdate a TCB info or QE identity may be served in an outage. Zero: not at all.
	MaxStale time.Duration
	// Offline says that no source will ever have anything newer than what is on disk: nothing is due before its own end.
	Offline bool
	// Timeout bounds one round through the sources.
	Timeout time.Duration // default 30 s
	// Parallel bounds how many rounds run at once.
	Parallel int              // default 16
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // default none

	random func() float64                       // jitter, for tests
	write  func(name string, data []byte) error // writing a file, for tests
}

func (o Options) withDefaults() Options {
	if o.MaxEntries <= 0 {
		o.MaxEntries = 4096
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.random == nil {
		o.random = rand.Float64
	}
	return o
}

// Cache is a Getter over sources. It is safe for use by many goroutines.
type Cache struct {
	o       Options
	now     func() time.Time
	disk    *disk // nil without a folder
	flights singleflight.Group
	slots   chan struct{}
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	byKey     map[Key]*list.Element
	order     *list.List // of *Item, the latest use first
	bytes     int64
	negatives *negatives
	sources   []*sourceState
	stats     Stats
}

var _ Getter = (*Cache)(nil)

// New opens a cache over sources, which are asked in the order given, and reads what an earlier run left on disk.
func New(o Options, sources ...Source) (*Cache, error) {
	o = o.withDefaults()
	c := &Cache{
		o: o, now: o.Now, slots: make(chan struct{}, o.Parallel),
		byKey: map[Key]*list.Element{}, order: list.New(), negatives: newNegatives(o.MaxEntries),
	}
	for _, s := range sources {
		c.sources = append(c.sources, &sourceState{source: s, stats: SourceStats{Name: s.Name()}})
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	if o.Dir == "" {
		return c, nil
	}
	var err error
	if c.disk, err = openDisk(o.Dir, o.write); err != nil {
		c.stop()
		return nil, err
	}
	items, corrupt, err := c.disk.load(o.MaxEntries, o.MaxBytes)
	if err != nil {
		c.stop()
		return nil, err
	}
	c.stats.DiskCorrupt = corrupt
	for i := len(items) - 1; i >= 0; i-- { // the oldest first, so that it is the first to go
		c.insert(items[i])
	}
	return c, nil
}

// Close ends running fetches and waits for them.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.running.Wait()
}

// Get returns a document: from memory when it is current, else from disk or a source. Items whose Outage is set are the best there
// is although a newer one was due.
func (c *Cache) Get(ctx context.Context, q Query) (Item, error) {
	if err := q.Key.Validate(); err != nil {
		return Item{}, err
	}
	if err := ctx.Err(); err != nil {
		return Item{}, fmt.Errorf("collateral %s: %w", q.Key, err)
	}
	if q.NoStore {
		return c.once(ctx, q)
	}
	now := c.now()
	c.mu.Lock()
	held := c.lookup(q.Key)
	if held != nil && c.current(held, now) {
		c.stats.Hits++
		c.mu.Unlock()
		return *held, nil
	}
	denied := c.negatives.check(q.Key, now)
	if denied != nil && !c.disk.newer(q.Key, held) {
		c.stats.Deferred++
		item, err := c.fallback(held, denied, now)
		c.mu.Unlock()
		return item, err
	}
	c.stats.Misses++
	closed := c.closed
	if !closed {
		c.running.Add(1) // inside the mutex, so that Close does not miss it
	}
	c.mu.Unlock()
	if closed {
		return Item{}, fmt.Errorf("collateral %s: the cache is closed", q.Key)
	}
	result := c.flights.DoChan(q.Key.String(), func() (any, error) { return c.fetch(span.Carry(c.ctx, ctx), q) })
	if held != nil && !held.expired(now) && !q.Key.Kind.revocation() {
		// Still good by its own dates: the refresh goes on in the background.
		go func() { defer c.running.Done(); <-result }()
		return *held, nil
	}
	select {
	case r := <-result:
		c.running.Done()
		if r.Shared {
			c.mu.Lock()
			c.stats.Shared++
			c.mu.Unlock()
		}
		if r.Err != nil {
			return Item{}, r.Err
		}
		return r.Val.(Item), nil
	case <-ctx.Done():
		go func() { defer c.running.Done(); <-result }()
		return Item{}, fmt.Errorf("collateral %s: waiting for the sources: %w", q.Key, ctx.Err())
	}
}

// fetch gets a document that is not current in memory. Only one runs per key.
func (c *Cache) fetch(ctx context.Context, q Query) (Item, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	now := c.now()
	c.mu.Lock()
	held := c.lookup(q.Key)
	c.mu.Unlock()
	if held != nil && c.current(held, now) { // a fetch ended between the caller's look and this one
		return *held, nil
	}
	if c.disk.newer(q.Key, held) {
		if it := c.readDisk(q.Key); it != nil {
			if c.current(it, now) {
				return *it, nil
			}
			held = it
		}
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Item{}, fmt.Errorf("collateral %s: waiting for a place among %d fetches: %w", q.Key, cap(c.slots), ctx.Err())
	}
	got, failure := c.ask(ctx, q)
	// One that has ended is kept only where it may be served, and only when it is better than what is held.
	if got != nil && (failure == nil || q.Key.Kind.judged() && (held == nil || got.Until.After(held.Until))) {
		c.store(got)
		held = got
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if failure == nil {
		c.negatives.remove(q.Key)
		return *held, nil
	}
	if c.ctx.Err() == nil {
		c.negatives.add(q.Key, failure, c.now(), c.o.random())
	}
	item, err := c.fallback(held, failure, now)
	if err == nil {
		c.o.Log.Warn("collateral is due for a refresh and none could be had", "collateral", q.Key.String(), "valid_until", item.Until,
			"error", failure)
	}
	return item, err
}

// current tells whether an item can be served without asking anybody.
func (c *Cache) current(it *Item, now time.Time) bool {
	if c.o.Offline {
		return !it.expired(now) && !c.disk.newer(it.Key, it)
	}
	return !it.expired(now) && now.Before(it.Refresh)
}

// fallback serves what is held in an outage, where that is allowed. The caller holds the mutex.
func (c *Cache) fallback(held *Item, cause error, now time.Time) (Item, error) {
	if held == nil {
		return Item{}, cause
	}
	if held.expired(now) {
		late := now.Sub(held.Until)
		if !held.Key.Kind.judged() || late > c.o.MaxStale {
			return Item{}, fmt.Errorf("%w; the one held ended %s", cause, held.Until.UTC().Format(time.RFC3339))
		}
	}
	c.stats.Outages++
	item := *held
	item.Outage = cause
	return item, nil
}

// once asks the sources for an answer that is not kept.
func (c *Cache) once(ctx context.Context, q Query) (Item, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Item{}, fmt.Errorf("collateral %s: waiting for a place among %d fetches: %w", q.Key, cap(c.slots), ctx.Err())
	}
	it, failure := c.ask(ctx, q)
	if failure != nil {
		return Item{}, failure
	}
	return *it, nil
}

// ask goes through the sources. It returns the first answer that is current with no error; else what failed, beside the latest expired
// answer, if any came.
func (c *Cache) ask(ctx context.Context, q Query) (*Item, *FetchError) {
	failure := &FetchError{Key: q.Key}
	var expired *Item
	c.count(func(s *Stats) { s.Fetches++ })
	for _, s := range c.sources {
		it, err := c.askOne(ctx, s, q)
		if err == nil && it.expired(c.now()) {
			if expired == nil || it.Until.After(expired.Until) {
				expired = it
			}
			err = fmt.Errorf("the one it has ended %s", it.Until.UTC().Format(time.RFC3339))
			c.count(func(s *Stats) { s.Rejected++ })
		}
		if err == nil {
			return it, nil
		}
		if !errors.Is(err, ErrNotCovered) {
			failure.Attempts = append(failure.Attempts, Attempt{Source: s.source.Name(), Err: err})
		}
	}
	c.count(func(s *Stats) { s.Failures++ })
	return expired, failure
}

func (c *Cache) count(f func(*Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// askOne asks one source, unless it is left alone at the moment, and checks its answer.
func (c *Cache) askOne(ctx context.Context, s *sourceState, q Query) (*Item, error) {
	c.mu.Lock()
	waiting := s.waiting(c.now())
	c.mu.Unlock()
	if waiting != nil {
		return nil, waiting
	}
	asking, end := span.Start(ctx, span.Collateral, span.Source(s.source.Name()))
	answer, err := s.source.Fetch(asking, q)
	if errors.Is(err, ErrNotCovered) {
		end(nil)
		return nil, err
	}
	end(err)
	now := c.now()
	var it *Item
	if err == nil {
		it = &Item{Key: q.Key, Data: answer.Data, Chain: answer.Chain, Source: s.source.Name(), Fetched: now}
		if it.Issued, it.Until, err = Check(q.Key, it.Data, it.Chain); err != nil {
			err = fmt.Errorf("its answer is not what was asked for: %w", err)
			c.count(func(s *Stats) { s.Rejected++ })
		} else {
			it.Refresh = refresh(it, answer.MaxAge)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.stats.Asked++
	if err != nil {
		var busy *BusyError
		if errors.As(err, &busy) && c.ctx.Err() == nil {
			s.failed(busy, now, c.o.random())
		}
		s.stats.Failed++
		s.stats.LastError = err.Error()
		return nil, err
	}
	s.failures, s.until, s.last = 0, time.Time{}, nil
	s.stats.Answered++
	s.stats.LastError = ""
	return it, nil
}

// Refresh times. Intel's documents may be kept for a week at most; new revocations and TCB levels are wanted sooner.
const (
	refreshMin        = 10 * time.Minute
	refreshMax        = 168 * time.Hour
	refreshRevocation = 6 * time.Hour
	refreshJudged     = 24 * time.Hour
)

// refresh is when a document is asked for again: when its source said so, within bounds, and at its own end at the latest.
func refresh(it *Item, maxAge time.Duration) time.Time {
	limit := refreshMax
	switch {
	case it.Key.Kind.revocation():
		limit = refreshRevocation
	case it.Key.Kind.judged():
		limit = refreshJudged
	}
	age := limit
	if maxAge > 0 {
		age = min(max(maxAge, refreshMin), limit)
	}
	at := it.Fetched.Add(age)
	if !it.Until.IsZero() && it.Until.Before(at) {
		return it.Until
	}
	return at
}
