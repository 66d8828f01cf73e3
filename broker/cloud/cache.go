package cloud

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// early is how long before their end credentials are renewed.
	early = 5 * time.Minute
	// renewPause is how long the old credentials are used after a renewal has failed, before the next.
	renewPause = 10 * time.Second
	// fetchTimeout bounds a renewal, which several callers may wait for.
	fetchTimeout = 20 * time.Second
)

// Cache keeps credentials until shortly before they end. Many callers at once cause one renewal. When a renewal fails,
// the old ones are used while they are good.
type Cache[T any] struct {
	fetch func(context.Context) (T, time.Time, error)
	now   func() time.Time

	group singleflight.Group

	mu      sync.Mutex
	value   T
	serial  uint64 // of value; 0 is none
	last    uint64 // greatest serial given out
	expires time.Time
	renew   time.Time
}

// NewCache makes a Cache of what fetch returns, which also tells when it ends.
func NewCache[T any](now func() time.Time, fetch func(context.Context) (T, time.Time, error)) *Cache[T] {
	return &Cache[T]{fetch: fetch, now: now}
}

// Get returns credentials and their serial, for Drop.
func (c *Cache[T]) Get(ctx context.Context) (T, uint64, error) {
	if v, serial, ok := c.fresh(); ok {
		return v, serial, nil
	}
	// The renewal outlives a caller that gives up: others wait for it.
	done := c.group.DoChan("", func() (any, error) {
		if _, _, ok := c.fresh(); ok { // somebody else was faster
			return nil, nil
		}
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		v, expires, err := c.fetch(shared)
		return nil, c.store(v, expires, err)
	})
	var zero T
	select {
	case r := <-done:
		if r.Err != nil {
			return zero, 0, r.Err
		}
	case <-ctx.Done():
		return zero, 0, fmt.Errorf("waiting for credentials: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serial == 0 {
		return zero, 0, fmt.Errorf("the credentials were refused as soon as they were there")
	}
	return c.value, c.serial, nil
}

// Drop forgets credentials that a service has refused, unless they were renewed meanwhile.
func (c *Cache[T]) Drop(serial uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serial == serial {
		c.serial = 0
	}
}

func (c *Cache[T]) fresh() (v T, serial uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serial == 0 || !c.now().Before(c.renew) {
		return v, 0, false
	}
	return c.value, c.serial, true
}

func (c *Cache[T]) store(v T, expires time.Time, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if err == nil && !expires.After(now) {
		err = fmt.Errorf("the credentials ended at %s, it is %s; hint: look at the clocks", expires.UTC().Format(time.RFC3339),
			now.UTC().Format(time.RFC3339))
	}
	if err != nil {
		if c.serial == 0 || !c.expires.After(now) {
			return err
		}
		c.renew = earlier(now.Add(renewPause), c.expires)
		return nil
	}
	c.last++
	c.value, c.expires, c.serial = v, expires, c.last
	c.renew = expires.Add(-min(early, expires.Sub(now)/4))
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Clock is a clock with a correction: what a service says about the time when it refuses ours.
type Clock struct {
	now func() time.Time

	mu   sync.Mutex
	skew time.Duration
}

const (
	// minSkew is less than any service minds.
	minSkew = 20 * time.Second
	// maxSkew bounds how far a service may move our clock for its signatures.
	maxSkew = 24 * time.Hour
)

// NewClock makes a Clock without a correction.
func NewClock(now func() time.Time) *Clock { return &Clock{now: now} }

// Now is the corrected time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Add(c.skew)
}

// Learn takes the time from the head of an answer over TLS and tells whether the clock is another one now.
func (c *Clock) Learn(a Answer) bool {
	theirs, err := time.Parse(time.RFC1123, a.Header.Get("Date"))
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	skew := theirs.Sub(c.now())
	if skew.Abs() > maxSkew || (skew-c.skew).Abs() < minSkew {
		return false
	}
	c.skew = skew
	return true
}
