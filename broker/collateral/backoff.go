package collateral

import (
	"container/list"
	"errors"
	"time"
)

// Waiting times after failures.
const (
	sourceWaitMin = time.Second
	sourceWaitMax = 10 * time.Minute
	askedWaitMax  = time.Hour // the most a source's own Retry-After is followed
	keyWaitMin    = 2 * time.Second
	keyWaitMax    = 5 * time.Minute
	missingWait   = 10 * time.Minute // for documents that no source has
)

// grow doubles a waiting time with each failure, up to a limit, and takes a random part of its second half: many brokers that failed
// together do not come back together. random is in [0, 1).
func grow(least, most time.Duration, failures int, random float64) time.Duration {
	d := least
	for range failures - 1 {
		if d *= 2; d >= most {
			d = most
			break
		}
	}
	return d/2 + time.Duration(random*float64(d/2))
}

// sourceState is how a source fared. The cache's mutex guards it.
type sourceState struct {
	source   Source
	failures int // in a row, of the kind that concerns every document
	until    time.Time
	last     error
	stats    SourceStats
}

// failed records a failure that concerns the source as a whole.
func (s *sourceState) failed(busy *BusyError, now time.Time, random float64) {
	s.failures++
	wait := grow(sourceWaitMin, sourceWaitMax, s.failures, random)
	wait = max(wait, min(busy.Wait, askedWaitMax))
	s.until, s.last = now.Add(wait), busy
}

// waiting is the error of a source that is left alone for a while.
func (s *sourceState) waiting(now time.Time) error {
	if left := s.until.Sub(now); left > 0 {
		return &waitingError{left: left, failures: s.failures, last: s.last}
	}
	return nil
}

// negatives remembers what could not be had, the latest uses only. The cache's mutex guards it.
type negatives struct {
	max   int
	byKey map[Key]*list.Element
	order *list.List // of *negative, the latest first
}

type negative struct {
	key      Key
	failures int
	until    time.Time
	err      error
}

func newNegatives(most int) *negatives {
	return &negatives{max: most, byKey: map[Key]*list.Element{}, order: list.New()}
}

// check returns the remembered failure of a key while it lasts.
func (n *negatives) check(key Key, now time.Time) error {
	e, ok := n.byKey[key]
	if !ok {
		return nil
	}
	v := e.Value.(*negative)
	if left := v.until.Sub(now); left > 0 {
		n.order.MoveToFront(e)
		return &deferredError{err: v.err, left: left}
	}
	return nil
}

// add remembers a failure. One that only says that the sources are left alone is not remembered: their own time counts.
func (n *negatives) add(key Key, err *FetchError, now time.Time, random float64) {
	for _, a := range err.Attempts {
		var w *waitingError
		if errors.As(a.Err, &w) {
			return
		}
	}
	e, ok := n.byKey[key]
	if !ok {
		e = n.order.PushFront(&negative{key: key})
		n.byKey[key] = e
	}
	n.order.MoveToFront(e)
	v := e.Value.(*negative)
	v.failures++
	wait := grow(keyWaitMin, keyWaitMax, v.failures, random)
	if err.missing() {
		wait = missingWait/2 + time.Duration(random*float64(missingWait/2))
	}
	v.err, v.until = err, now.Add(wait)
	for n.order.Len() > n.max {
		n.remove(n.order.Back().Value.(*negative).key)
	}
}

func (n *negatives) remove(key Key) {
	if e, ok := n.byKey[key]; ok {
		n.order.Remove(e)
		delete(n.byKey, key)
	}
}
