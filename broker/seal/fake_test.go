package seal

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// memory is a KeyStore whose clock and faults a test sets.
type memory struct {
	mu      sync.Mutex
	value   []byte
	version int64
	clock   time.Time
	down    error
	// lost makes writes happen whose answers get lost, refuse those that do not happen.
	lost, refuse bool
}

func (m *memory) now() time.Time { m.mu.Lock(); defer m.mu.Unlock(); return m.clock }

func (m *memory) set(change func()) { m.mu.Lock(); defer m.mu.Unlock(); change() }

func (m *memory) advance(d time.Duration) { m.set(func() { m.clock = m.clock.Add(d) }) }

func (m *memory) Load(context.Context) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.value == nil && m.down == nil {
		return Record{}, store.ErrNotFound
	}
	return Record{bytes.Clone(m.value), m.version, m.clock}, m.down
}

func (m *memory) write(value []byte) error {
	if m.refuse {
		return errors.New("crash before the write")
	}
	m.value = bytes.Clone(value)
	m.version++
	if m.lost {
		return errors.New("crash after the write")
	}
	return m.down
}

func (m *memory) Create(_ context.Context, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.value != nil {
		return store.ErrExists
	}
	return m.write(value)
}

func (m *memory) Swap(_ context.Context, version int64, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version != m.version {
		return store.ErrChanged
	}
	return m.write(value)
}

func newMemory() *memory { return &memory{clock: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)} }

// kek is a Wrapper that a test can put out of order.
type kek struct {
	name  string
	key   *Key
	mu    sync.Mutex
	fail  error
	wrong bool
	asked int
}

func newKEK(t testing.TB, name string) *kek {
	t.Helper()
	raw := append([]byte(name), make([]byte, keySize-len(name))...)
	k, err := New(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &kek{name: name, key: k}
}

func (k *kek) Name() string { return "test:" + k.name }

func (k *kek) Wrap(_ context.Context, plaintext, bound []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return nil, k.fail
	}
	return k.key.Seal(string(bound), plaintext)
}

func (k *kek) Unwrap(_ context.Context, wrapped, bound []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.fail != nil {
		return nil, k.fail
	}
	plain, err := k.key.Open(string(bound), wrapped)
	if err == nil && k.wrong {
		plain[0] ^= 1
	}
	return plain, err
}

func source(m *memory, w Wrapper) Source {
	return Source{Identity: "prod", Keep: m, Wrap: w, Now: m.now}
}

func mustOpen(t *testing.T, s Source) *Keys {
	t.Helper()
	k, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustSeal(t *testing.T, k *Keys, text string) []byte {
	t.Helper()
	sealed, err := k.Seal("here", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func reads(t *testing.T, k *Keys, sealed []byte, want string) {
	t.Helper()
	if got, err := k.Open("here", sealed); err != nil || string(got) != want {
		t.Errorf("got %q, want %q (%v)", got, want, err)
	}
}
