package session

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// Manager owns all sessions.
type Manager struct {
	now      func() time.Time
	lifetime time.Duration
	max      int

	mu     sync.Mutex
	byID   map[string]*Session
	tokens int64 // bytes, of all sessions in byID
}

// NewManager makes a Manager; zero values mean the defaults.
func NewManager(now func() time.Time, lifetime time.Duration, max int) *Manager {
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	if max == 0 {
		max = DefaultMax
	}
	return &Manager{now: now, lifetime: lifetime, max: max, byID: map[string]*Session{}}
}

// New makes a session with a fresh id and, unless the verifier has made one, a fresh nonce.
func (m *Manager) New(_ context.Context, tee, nonce, hash string, challenge json.RawMessage) (*Session, error) {
	s, err := fresh(m, tee, nonce, hash, challenge)
	if err != nil {
		return nil, err
	}
	s.Expires = m.now().Add(m.lifetime)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.byID) >= m.max {
		m.sweep()
	}
	if len(m.byID) >= m.max {
		return nil, fmt.Errorf("%w: all %d are taken", ErrFull, m.max)
	}
	m.byID[s.ID] = s
	return s, nil
}

// Get returns a live session. An expired one is removed.
func (m *Manager) Get(_ context.Context, id string) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.byID[id]
	if !ok {
		return nil, ErrUnknown
	}
	if !m.now().Before(s.Expires) {
		m.drop(s)
		return nil, fmt.Errorf("%w since %s", ErrExpired, s.Expires.UTC().Format(time.RFC3339))
	}
	return s, nil
}

func (m *Manager) attest(ctx context.Context, s *Session, fn Func) (token, attestation string, again bool, err error) {
	token, attestation, err = fn(ctx)
	if err == nil {
		err = m.room(s, int64(len(token)))
	}
	return token, attestation, false, err
}

// room counts the token of a session, unless it would make the tokens of all sessions too large. A session that has expired
// meanwhile is nobody's any more, and neither is its token.
func (m *Manager) room(s *Session, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if total := m.tokens + size; total > maxTokens {
		return fmt.Errorf("%w: their tokens take %d bytes, at most %d", ErrFull, total, maxTokens)
	}
	if m.byID[s.ID] == s {
		s.size = size
		m.tokens += size
	}
	return nil
}

// drop forgets a session and its token. It is called with the lock.
func (m *Manager) drop(s *Session) {
	delete(m.byID, s.ID)
	m.tokens -= s.size
}

// Len is the number of sessions kept.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.byID)
}

// Run removes expired sessions every interval until ctx ends.
func (m *Manager) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			m.mu.Lock()
			m.sweep()
			m.mu.Unlock()
		}
	}
}

func (m *Manager) sweep() {
	now := m.now()
	for _, s := range m.byID {
		if !now.Before(s.Expires) {
			m.drop(s)
		}
	}
}
