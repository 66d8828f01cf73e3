// Package session keeps the handshakes between a challenge and the secrets it led to.
//
// A session is made by a challenge, holds its nonce, and lives a fixed time that nothing extends. It is pending until
// one attestation succeeds; from then on it is attested and carries the token, and a second attestation gets that token
// back without being looked at. Sessions are bounded in number: when all are taken, new challenges are refused rather
// than old guests thrown out.
//
// There are two keepers with one meaning. Manager holds sessions in memory, for one broker; a restart asks guests to
// attest again. Shared holds them in a store, for several brokers: a guest may talk to another one at each step.
package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
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
	// ErrLost is returned to an attestation that another one has overtaken while the store was out of reach.
	ErrLost = errors.New("another broker has taken the session over")
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
	Challenge json.RawMessage

	keeper keeper
	size   int64         // of the token, as its Manager counts it
	turn   chan struct{} // holds one item while somebody attests

	mu    sync.Mutex
	token string
	id    string
}

// Func verifies evidence and makes a token. ctx ends when the caller goes away or the session is lost to another broker.
type Func func(ctx context.Context) (token, attestation string, err error)

// keeper is who holds a session; its attest is called by one caller at a time.
type keeper interface {
	attest(ctx context.Context, s *Session, fn Func) (token, attestation string, again bool, err error)
}

// Attest runs fn once: the first success is kept, and later calls get its token. Calls wait for each other, so a
// session never yields two tokens.
func (s *Session) Attest(ctx context.Context, fn Func) (token, attestation string, again bool, err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return "", "", false, fmt.Errorf("waiting for another attestation of the session: %w", ctx.Err())
	}
	defer func() { <-s.turn }()
	s.mu.Lock()
	token, attestation = s.token, s.id
	s.mu.Unlock()
	if token != "" {
		return token, attestation, true, nil
	}
	token, attestation, again, err = s.keeper.attest(ctx, s, fn)
	if err != nil {
		return "", "", false, err
	}
	s.keep(token, attestation)
	return token, attestation, again, nil
}

func (s *Session) keep(token, attestation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.id = token, attestation
}

// Token returns the token of a session that was attested when Get returned it, or has been through it.
func (s *Session) Token() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.token != ""
}

// Attestation is the id of the record of an attested session's attestation, "" before. The token may have another id: that of the
// attestation service that made it.
func (s *Session) Attestation() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// fresh makes a session with a new id and, unless the verifier has made one, a new nonce.
func fresh(k keeper, tee, nonce, hash string, challenge json.RawMessage) (*Session, error) {
	if len(challenge) > maxChallenge {
		return nil, fmt.Errorf("the challenge of %.32q has %d bytes, at most %d are kept", tee, len(challenge), maxChallenge)
	}
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
	return &Session{keeper: k, turn: make(chan struct{}, 1), ID: id, TEE: tee, Nonce: nonce, Hash: hash, Challenge: challenge}, nil
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
