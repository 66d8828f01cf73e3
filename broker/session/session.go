// Package session keeps the handshakes between a challenge and the secrets it led to.
//
// A session is made by a challenge, holds its nonce, and lives a fixed time that nothing extends. It is pending until
// one attestation succeeds; from then on it is attested and carries the token, and a second attestation gets that token
// back without being looked at. Sessions are bounded in number: when all are taken, new challenges are refused rather
// than old guests thrown out. They live in memory only; a restart asks guests to attest again.
package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults.
const (
	DefaultLifetime = 5 * time.Minute
	DefaultMax      = 10_000
)

// maxTokens bounds the memory of all tokens together: they hold what guests said, and that can be long.
const maxTokens = 256 << 20

// Sentinels a caller answers differently.
var (
	ErrFull    = errors.New("too many sessions")
	ErrUnknown = errors.New("no such session")
	ErrExpired = errors.New("session is expired")
)

// Session is one handshake. The fields never change after New.
type Session struct {
	ID      string
	TEE     string
	Nonce   string
	Expires time.Time
	// Hash is the digest algorithm of the report data.
	Hash string
	// Challenge is what the verifier of the TEE wants back at the attestation; nil for most.
	Challenge any

	manager *Manager
	size    atomic.Int64 // of the token

	mu    sync.Mutex
	token string
	id    string
}

// Attest runs fn once: the first success is kept, and later calls get its token. Calls wait for each other, so a session
// never yields two tokens.
func (s *Session) Attest(fn func() (token, attestation string, err error)) (token, attestation string, again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" {
		return s.token, s.id, true, nil
	}
	t, id, err := fn()
	if err != nil {
		return "", "", false, err
	}
	if err := s.manager.room(int64(len(t))); err != nil {
		return "", "", false, err
	}
	s.token, s.id = t, id
	s.size.Store(int64(len(t)))
	return t, id, false, nil
}

// Token returns the token of an attested session.
func (s *Session) Token() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.token != ""
}

// Manager owns all sessions.
type Manager struct {
	now      func() time.Time
	lifetime time.Duration
	max      int

	mu   sync.Mutex
	byID map[string]*Session
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
func (m *Manager) New(tee, nonce, hash string, challenge any) (*Session, error) {
	id, err := newID()
	if err != nil {
		return nil, err
	}
	if nonce == "" {
		random := make([]byte, 32)
		if _, err := rand.Read(random); err != nil {
			return nil, fmt.Errorf("making nonce: %w", err)
		}
		nonce = base64.StdEncoding.EncodeToString(random)
	}
	s := &Session{
		manager: m, ID: id, TEE: tee, Hash: hash, Challenge: challenge,
		Nonce: nonce, Expires: m.now().Add(m.lifetime),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.byID) >= m.max {
		m.sweep()
	}
	if len(m.byID) >= m.max {
		return nil, fmt.Errorf("%w: all %d are taken", ErrFull, m.max)
	}
	m.byID[id] = s
	return s, nil
}

// Get returns a live session. An expired one is removed.
func (m *Manager) Get(id string) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.byID[id]
	if !ok {
		return nil, ErrUnknown
	}
	if !m.now().Before(s.Expires) {
		delete(m.byID, id)
		return nil, fmt.Errorf("%w since %s", ErrExpired, s.Expires.UTC().Format(time.RFC3339))
	}
	return s, nil
}

// room refuses a token that would make the tokens of all sessions too large.
func (m *Manager) room(more int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := more
	for _, s := range m.byID {
		total += s.size.Load()
	}
	if total > maxTokens {
		return fmt.Errorf("%w: their tokens take %d bytes, at most %d", ErrFull, total, maxTokens)
	}
	return nil
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
	for id, s := range m.byID {
		if !now.Before(s.Expires) {
			delete(m.byID, id)
		}
	}
}

// newID is a version 4 UUID as 32 hex digits, the form upstream uses.
func newID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("making session id: %w", err)
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b[:]), nil
}
