package postgres

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/cloister/cloister/broker/store"
)

// counter answers what a namespace takes. Counting walks over all its rows, so callers that wait at the same time share
// one count – one that began after they asked, or it would miss what they have just written.
type counter struct {
	read func(ctx context.Context, ns string) (store.Usage, error)

	mu     sync.Mutex
	spaces map[string]*counts
}

// counts are those of one namespace: at most one runs and at most one waits for its turn.
type counts struct {
	turn sync.Mutex // held while counting
	next *count     // the one to join; guarded by counter.mu
}

type count struct {
	once  sync.Once
	usage store.Usage
	err   error
}

func (c *counter) get(ctx context.Context, ns string) (store.Usage, error) {
	c.mu.Lock()
	if c.spaces == nil {
		c.spaces = map[string]*counts{}
	}
	s := c.spaces[ns]
	if s == nil {
		s = &counts{}
		c.spaces[ns] = s
	}
	if s.next == nil {
		s.next = &count{}
	}
	mine := s.next
	c.mu.Unlock()

	mine.once.Do(func() {
		s.turn.Lock()
		defer s.turn.Unlock()
		c.mu.Lock()
		s.next = nil // whoever asks from here on gets a later count
		c.mu.Unlock()
		// The count is that of all who wait: the one who asked first may not take it along when it goes away.
		mine.usage, mine.err = c.read(context.WithoutCancel(ctx), ns)
	})
	return mine.usage, mine.err
}

// isEOF tells whether a connection ended in the middle of an answer.
func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
