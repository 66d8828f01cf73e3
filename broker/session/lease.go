package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// maxFailures is how often taking a lease is tried when the store fails.
const maxFailures = 3

// lease is the right to attest a session. Renewing it changes the version of the session, so version and mu go together.
type lease struct {
	m      *Shared
	key    string
	holder string // tells this attempt from all others

	mu      sync.Mutex
	version int64
}

// attest is part of keeper.
func (m *Shared) attest(ctx context.Context, s *Session, fn Func) (token, attestation string, again bool, err error) {
	release, err := m.local.take(ctx, s.ID)
	if err != nil {
		return "", "", false, err
	}
	defer release()
	holder, err := newID()
	if err != nil {
		return "", "", false, err
	}
	l := &lease{m: m, key: storeKey(s.ID), holder: holder}
	st, err := l.acquire(ctx)
	if err != nil {
		return "", "", false, err
	}
	if st.Token != "" {
		return st.Token, st.Attestation, true, nil
	}
	work, stop := context.WithCancel(ctx)
	renewed := make(chan struct{})
	go func() { defer close(renewed); l.renew(work, stop) }()
	settled := false
	defer func() {
		stop()
		<-renewed
		if !settled { // an error, or a panic of fn
			l.giveBack(ctx, st)
		}
	}()
	token, attestation, err = fn(work)
	if err != nil {
		return "", "", false, err
	}
	stop()
	<-renewed
	if len(token) > store.MaxValue/2 {
		return "", "", false, fmt.Errorf("the token has %d bytes, at most %d are kept", len(token), store.MaxValue/2)
	}
	final := st
	final.Until, final.Holder, final.Token, final.Attestation = time.Time{}, "", token, attestation
	kept, err := l.finish(ctx, final)
	if err != nil {
		return "", "", false, err
	}
	settled = true
	return kept.Token, kept.Attestation, kept.Token != token, nil
}

// acquire takes the lease, waiting for other holders, or returns a session that has its token.
func (l *lease) acquire(ctx context.Context) (state, error) {
	for failures := 0; ; {
		st, e, err := l.m.load(ctx, l.key)
		if err != nil || st.Token != "" {
			return st, err
		}
		if st.Holder == l.holder { // the answer to the swap got lost
			l.version = e.Version
			return st, nil
		}
		pause := time.Duration(0)
		if left := st.Until.Sub(e.Now); left > 0 {
			pause = min(left, pollInterval) + jitter()
		} else {
			st.Holder, st.Until = l.holder, e.Now.Add(l.m.o.Lease)
			l.version, err = l.m.swap(ctx, l.key, e.Version, st, store.Limit{})
			switch {
			case err == nil:
				return st, nil
			case errors.Is(err, store.ErrChanged), errors.Is(err, store.ErrNotFound): // looks again
			default:
				if failures++; failures > maxFailures {
					return st, fmt.Errorf("taking the session: %w", err)
				}
				pause = pollInterval
			}
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("waiting for another broker to attest the session: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

// renew keeps the lease until ctx ends, and calls lost when somebody else has it.
func (l *lease) renew(ctx context.Context, lost func()) {
	ticker := time.NewTicker(l.m.o.Lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// A swap that is cut off may have happened: it gets its own time to end.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.m.o.Lease/3)
		err := l.extend(call)
		cancel()
		if errors.Is(err, store.ErrChanged) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrExpired) {
			l.m.o.Log.WarnContext(ctx, "the lease of a session is lost", "error", err)
			lost()
			return
		}
		if err != nil {
			l.m.o.Log.WarnContext(ctx, "the lease of a session could not be renewed yet", "error", err)
		}
	}
}

func (l *lease) extend(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, e, err := l.m.load(ctx, l.key)
	if err != nil {
		return err
	}
	if st.Holder != l.holder {
		return store.ErrChanged
	}
	l.version = e.Version // the answer to an earlier renewal may have got lost
	st.Until = e.Now.Add(l.m.o.Lease)
	next, err := l.m.swap(ctx, l.key, l.version, st, store.Limit{})
	if err == nil {
		l.version = next
	}
	return err
}

// finish swaps in the token. An answer that got lost is looked up: the token is handed out only when it is known to be the
// one in the store.
func (l *lease) finish(ctx context.Context, final state) (state, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		_, err := l.m.swap(ctx, l.key, l.version, final, l.m.limit())
		switch {
		case err == nil:
			return final, nil
		case errors.Is(err, store.ErrFull):
			return state{}, fmt.Errorf("%w: with this token they take more than %d bytes", ErrFull, int64(maxTokens))
		}
		now, e, loadErr := l.m.load(ctx, l.key)
		switch {
		case loadErr == nil && now.Token != "":
			return now, nil
		case loadErr == nil && now.Holder != l.holder:
			return state{}, ErrLost
		case loadErr == nil:
			l.version = e.Version // that of a renewal whose answer got lost
		case errors.Is(loadErr, ErrUnknown), errors.Is(loadErr, ErrExpired):
			return state{}, loadErr
		}
		select {
		case <-ctx.Done():
			return state{}, fmt.Errorf("keeping the token: %w", err)
		case <-time.After(pollInterval + jitter()):
		}
	}
}

// giveBack ends the lease of an attestation that failed, so that the guest can try again at once. When that fails, the
// lease ends by itself.
func (l *lease) giveBack(ctx context.Context, st state) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Until, st.Holder = time.Time{}, ""
	if _, err := l.m.swap(ctx, l.key, l.version, st, store.Limit{}); err != nil {
		l.m.o.Log.WarnContext(ctx, "the lease of a failed attestation was not given back", "error", err)
	}
}
