package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister/cloister/broker/store"
)

const (
	// DefaultLease is how long a session stays closed after the broker that attests it has died.
	DefaultLease = 15 * time.Second
	// callTimeout bounds what no caller bounds: counting, and writes that outlive their caller.
	callTimeout = 15 * time.Second
	// pollInterval is how often a broker looks whether another one is done.
	pollInterval = 100 * time.Millisecond
	// maxChallenge bounds what a verifier leaves in a session, in bytes.
	maxChallenge = 64 << 10
	sweepTimeout = time.Minute
)

type backend interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit store.Limit) (store.Entry, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
	DeleteExpired(ctx context.Context, ns string) (int, error)
	Usage(ctx context.Context, ns string) (store.Usage, error)
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// Options of Shared; zero values mean the defaults.
type Options struct {
	Log      *slog.Logger
	Now      func() time.Time
	Lifetime time.Duration
	Max      int
	// Lease is renewed three times in its length; it has to be longer than the store may be away.
	Lease time.Duration
}

// Shared keeps sessions in a store that several brokers use.
//
// A session is one sealed value under the hash of its id: who reads the database learns neither nonces and tokens nor the
// cookies that stand for them. To attest, a broker first takes a lease by compare-and-swap, then verifies, then swaps in
// the token. The swap succeeds only for the holder of the lease that is in the store, so there is one token however the
// clocks go, whoever dies, and however late an answer comes; the lease is only there so that the work is not done twice.
// A broker that loses its lease gets the winner's token, and its own never leaves it.
type Shared struct {
	db    backend
	key   sealer
	o     Options
	local *turns
	count atomic.Int64 // what Len said last
}

// NewShared makes a Shared over db, sealed with key.
func NewShared(db backend, key sealer, o Options) *Shared {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Max == 0 {
		o.Max = DefaultMax
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	return &Shared{db: db, key: key, o: o, local: &turns{byID: map[string]chan struct{}{}}}
}

// state is a session as it is stored.
type state struct {
	TEE       string          `json:"tee"`
	Nonce     string          `json:"nonce"`
	Hash      string          `json:"hash"`
	Challenge json.RawMessage `json:"challenge,omitempty"`
	// Holder is who attests, and Until when its lease ends by the clock of the store.
	Holder      string    `json:"holder,omitempty"`
	Until       time.Time `json:"until,omitzero"`
	Token       string    `json:"token,omitempty"`
	Attestation string    `json:"attestation,omitempty"`
}

func storeKey(id string) string {
	sum := sha256.Sum256([]byte("cloister session\x00" + id))
	return hex.EncodeToString(sum[:])
}

// Place is what the value under a key of store.Sessions is sealed for.
func Place(key string) string { return "session:" + key }

func (m *Shared) limit() store.Limit { return store.Limit{Entries: m.o.Max, Bytes: maxTokens} }

// New makes a session with a fresh id and, unless the verifier has made one, a fresh nonce.
func (m *Shared) New(ctx context.Context, tee, nonce, hash string, challenge json.RawMessage) (*Session, error) {
	s, err := fresh(m, tee, nonce, hash, challenge)
	if err != nil {
		return nil, err
	}
	key := storeKey(s.ID)
	sealed, err := m.seal(key, state{TEE: tee, Nonce: s.Nonce, Hash: hash, Challenge: challenge})
	if err != nil {
		return nil, err
	}
	e, err := m.db.Create(ctx, store.Sessions, key, sealed, m.o.Lifetime, m.limit())
	if errors.Is(err, store.ErrFull) {
		if n, sweepErr := m.db.DeleteExpired(ctx, store.Sessions); sweepErr == nil && n > 0 {
			e, err = m.db.Create(ctx, store.Sessions, key, sealed, m.o.Lifetime, m.limit())
		}
	}
	if errors.Is(err, store.ErrFull) {
		return nil, fmt.Errorf("%w: all %d are taken", ErrFull, m.o.Max)
	}
	if err != nil {
		return nil, fmt.Errorf("keeping the session: %w", err)
	}
	s.Expires = m.o.Now().Add(e.Expires.Sub(e.Now))
	return s, nil
}

// Get returns a live session.
func (m *Shared) Get(ctx context.Context, id string) (*Session, error) {
	st, e, err := m.load(ctx, storeKey(id))
	if err != nil {
		return nil, err
	}
	return &Session{
		keeper: m, turn: make(chan struct{}, 1), ID: id, TEE: st.TEE, Nonce: st.Nonce, Hash: st.Hash,
		Challenge: st.Challenge,
		Expires:   m.o.Now().Add(e.Expires.Sub(e.Now)), token: st.Token, id: st.Attestation,
	}, nil
}

func (m *Shared) load(ctx context.Context, key string) (state, store.Entry, error) {
	e, err := m.db.Load(ctx, store.Sessions, key)
	switch {
	case errors.Is(err, store.ErrExpired):
		return state{}, e, ErrExpired
	case errors.Is(err, store.ErrNotFound):
		return state{}, e, ErrUnknown
	case err != nil:
		return state{}, e, fmt.Errorf("reading the session: %w", err)
	}
	plain, err := m.key.Open(Place(key), e.Value)
	if err != nil {
		return state{}, e, fmt.Errorf("opening the session: %w", err)
	}
	var st state
	if err := json.Unmarshal(plain, &st); err != nil {
		return state{}, e, fmt.Errorf("reading the session: %w", err)
	}
	return st, e, nil
}

func (m *Shared) seal(key string, st state) ([]byte, error) {
	plain, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("encoding the session: %w", err)
	}
	sealed, err := m.key.Seal(Place(key), plain)
	if err != nil {
		return nil, fmt.Errorf("sealing the session: %w", err)
	}
	return sealed, nil
}

func (m *Shared) swap(ctx context.Context, key string, version int64, st state, limit store.Limit) (int64, error) {
	sealed, err := m.seal(key, st)
	if err != nil {
		return 0, err
	}
	return m.db.CompareAndSwap(ctx, store.Sessions, key, version, sealed, limit)
}

// Len is the number of sessions kept, by the last count that succeeded.
func (m *Shared) Len() int {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if u, err := m.db.Usage(ctx, store.Sessions); err == nil {
		m.count.Store(int64(u.Entries))
	}
	return int(m.count.Load())
}

// Run removes expired sessions, those of other brokers too, every interval until ctx ends.
func (m *Shared) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			sweep, cancel := context.WithTimeout(ctx, sweepTimeout)
			if _, err := m.db.DeleteExpired(sweep, store.Sessions); err != nil && ctx.Err() == nil {
				m.o.Log.WarnContext(ctx, "expired sessions stay for now", "error", err)
			}
			cancel()
		}
	}
}

// turns lets the callers of one broker attest a session one after the other, so that only one of them asks the store.
type turns struct {
	mu   sync.Mutex
	byID map[string]chan struct{} // closed when the turn is over
}

func (t *turns) take(ctx context.Context, id string) (release func(), err error) {
	for {
		t.mu.Lock()
		busy, ok := t.byID[id]
		if !ok {
			mine := make(chan struct{})
			t.byID[id] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.byID, id)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another attestation of the session: %w", ctx.Err())
		}
	}
}

// jitter is a random byte of milliseconds, so that brokers that wait do not ask at the same moment.
func jitter() time.Duration {
	var b [1]byte
	_, _ = rand.Read(b[:]) // cannot fail, and zero does no harm
	return time.Duration(b[0]) * time.Millisecond / 4
}
