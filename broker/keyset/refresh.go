package keyset

import (
	"context"
	"sync"
	"time"
)

// Refresher reads a set again when somebody needs a key that it lacks: services change their keys, and some are not there yet
// when a set is opened. It does so at most once in a while, whoever asks.
type Refresher struct {
	set   *Set
	every time.Duration
	now   func() time.Time

	mu   sync.Mutex
	last time.Time
	err  error
}

// NewRefresher makes a Refresher that reads at most once in a time.
func NewRefresher(set *Set, every time.Duration, now func() time.Time) *Refresher {
	return &Refresher{set: set, every: every, now: now}
}

// Refresh reads the set again, unless that was done a short while ago, and returns how the last reading ended.
func (r *Refresher) Refresh(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if !r.last.IsZero() && now.Sub(r.last) < r.every && !now.Before(r.last) {
		return r.err
	}
	err := r.set.Reload(ctx)
	if ctx.Err() != nil {
		return err // it says nothing about the sources
	}
	r.last, r.err = now, err
	return err
}
