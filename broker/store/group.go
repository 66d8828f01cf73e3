package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// group lets writes that arrive while others are on their way to the disk go there together afterwards: it is the wait for the
// disk that costs.
type group struct {
	mu      sync.Mutex
	queue   []*write
	writing bool // somebody is at the file
}

// write is a change on its way to the disk. It may be made more than once; the last time counts.
type write struct {
	ns   string
	fn   func(space) error
	done chan error
}

// maxGroup is how many writes share a transaction.
const maxGroup = 256

// update makes a change and returns when it is on disk.
func (b *Bolt) update(ctx context.Context, ns string, fn func(space) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &write{ns: ns, fn: fn, done: make(chan error, 1)}
	b.writes.mu.Lock()
	b.writes.queue = append(b.writes.queue, w)
	if !b.writes.writing {
		b.writes.writing = true
		go b.commitAll()
	}
	b.writes.mu.Unlock()
	return <-w.done
}

// commitAll makes changes until none is waiting.
func (b *Bolt) commitAll() {
	g := &b.writes
	g.mu.Lock()
	for len(g.queue) > 0 {
		n := min(len(g.queue), maxGroup)
		batch := g.queue[:n:n]
		g.queue = g.queue[n:]
		g.mu.Unlock()
		b.commit(batch)
		g.mu.Lock()
	}
	g.queue, g.writing = nil, false
	g.mu.Unlock()
}

// errAlone means that one change of a group failed, which takes back what the others did.
var errAlone = errors.New("one change of a group failed")

// commit makes changes in one transaction. One that fails is made again by itself, so that it neither spoils the others nor fails
// because of one of them that is taken back.
func (b *Bolt) commit(batch []*write) {
	for len(batch) > 0 {
		failed := -1
		err := b.db.Update(func(tx *bolt.Tx) error {
			for i, w := range batch {
				if err := b.try(tx, w); err != nil {
					failed = i
					return errAlone
				}
			}
			return nil
		})
		if failed < 0 {
			for _, w := range batch {
				w.done <- err
			}
			return
		}
		w := batch[failed]
		batch[failed] = batch[len(batch)-1]
		batch = batch[:len(batch)-1]
		w.done <- b.db.Update(func(tx *bolt.Tx) error { return b.try(tx, w) })
	}
}

// try makes a change. One that panics must not end those who wait for it, so it is an error.
func (b *Bolt) try(tx *bolt.Tx, w *write) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("writing to the store: panic: %v", p)
		}
	}()
	s, err := b.space(tx, w.ns)
	if err != nil {
		return err
	}
	return w.fn(s)
}
