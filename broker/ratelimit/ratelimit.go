// Package ratelimit bounds how often somebody may ask: an address, a tenant, anything with a name.
//
// Each name has a bucket of tokens that fills at a steady rate. The number of buckets is bounded: when one more is needed, that which
// was used longest ago goes. Whoever comes back after that has a full bucket again, so that a flood from more addresses than there are
// buckets is not held up by counting addresses, and never locks out somebody else.
package ratelimit

import (
	"container/list"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// Limit is a steady rate and how many may come at once; a rate of zero means no limit.
type Limit struct {
	PerSecond float64 `toml:"requests_per_second"`
	Burst     int     `toml:"burst"`
}

// Validate wants no negative numbers, and a burst wherever there is a rate.
func (l Limit) Validate() error {
	switch {
	case math.IsNaN(l.PerSecond) || math.IsInf(l.PerSecond, 0) || l.PerSecond < 0:
		return fmt.Errorf("requests_per_second is %v, want 0 (no limit) or more", l.PerSecond)
	case l.Burst < 0 || l.PerSecond > 0 && l.Burst == 0:
		return errors.New("burst is below 1, so nothing would be let through")
	}
	return nil
}

// MaxNames is how many names a limiter usually knows: about 3 MiB.
const MaxNames = 16384

// maxName bounds a name's memory; names that are longer share a bucket with those that begin alike.
const maxName = 128

// Limiter is a Limit for each name.
type Limiter struct {
	limit Limit
	most  int
	now   func() time.Time

	mu      sync.Mutex
	by      map[string]*list.Element
	recent  *list.List // of *bucket; the one used last is in front
	refused uint64
}

type bucket struct {
	name   string
	tokens float64
	at     time.Time
}

// New makes a Limiter that knows at most a number of names at a time.
func New(l Limit, names int, now func() time.Time) *Limiter {
	return &Limiter{limit: l, most: max(names, 1), now: now, by: map[string]*list.Element{}, recent: list.New()}
}

// Allow takes one token of a name. Without one it returns false and when there will be one.
func (l *Limiter) Allow(name string) (bool, time.Duration) {
	if l.limit.PerSecond <= 0 {
		return true, 0
	}
	if len(name) > maxName {
		name = name[:maxName]
	}
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(name, now)
	// A clock that went back gives nothing and takes nothing.
	if passed := now.Sub(b.at); passed > 0 {
		b.tokens = math.Min(float64(l.limit.Burst), b.tokens+passed.Seconds()*l.limit.PerSecond)
	}
	b.at = now
	if b.tokens < 1 {
		l.refused++
		return false, time.Duration(math.Min((1-b.tokens)/l.limit.PerSecond, float64(math.MaxInt32)) * float64(time.Second))
	}
	b.tokens--
	return true, 0
}

// bucket finds or makes the bucket of a name and notes that it is used.
func (l *Limiter) bucket(name string, now time.Time) *bucket {
	if e, ok := l.by[name]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(*bucket)
	}
	if len(l.by) >= l.most {
		last := l.recent.Back()
		delete(l.by, l.recent.Remove(last).(*bucket).name)
	}
	b := &bucket{name: name, tokens: float64(l.limit.Burst), at: now}
	l.by[name] = l.recent.PushFront(b)
	return b
}

// Len is how many names are known now.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.by)
}

// Refused is how many requests were refused since the start.
func (l *Limiter) Refused() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}
