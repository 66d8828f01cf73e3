// Package refstore keeps reference values: the measurements and settings an operator approved.
//
// A value is any JSON but null and has a name. A JSON array is a set of alternatives, and each of them is approved by itself: it
// has its own approvals, one per group that registered it, each with its own expiry (12 months by default), time, registrant,
// message type and signer. An alternative is accepted as long as one of its approvals holds. So adding an alternative renews
// no other, and removing a pod's values takes away none that another pod needs. An expired value is treated as
// absent: an approval that nobody renews ends.
//
// What registering does to a value that is there, by the mode of the message:
//
//   - replace, upstream's meaning and the default: the message says all alternatives of the name; with a group, all of that
//     group. Alternatives that it does not name end. When it names a new one, those that were there keep their expiry;
//     when it names none, it renews those that it names.
//   - add: the message says some more. Nothing ends; what it names is approved from now.
//
// The member renew of the message decides by itself whether named alternatives that are there are renewed.
//
// The message format, and what is stored, are supersets of those of upstream's RVPS (attestation-service.md section 9).
package refstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister/cloister/broker/refstore/extract"
	"github.com/cloister/cloister/broker/store"
)

// DefaultLifetime is how long a registered value is good for.
const DefaultLifetime = 365 * 24 * time.Hour

// Config names the trust anchors of the extractors.
type Config = extract.Config

// Trust is the trust anchors of the extractors.
type Trust = extract.Trust

// LoadTrust reads the files that a Config names.
func LoadTrust(c Config) (*Trust, error) { return extract.Load(c) }

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	Put(ctx context.Context, ns string, values map[string][]byte) error
	Delete(ctx context.Context, ns, key string) error
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

// Store is a set of reference values.
type Store struct {
	db       backend
	now      func() time.Time
	lifetime time.Duration
	trust    atomic.Pointer[Trust]
	// writing is held from reading a record to writing it; exclusive does the same over all brokers of one backend.
	writing   sync.Mutex
	exclusive func(ctx context.Context) (release func(), err error)
}

// Option is something that a Store may have.
type Option func(*Store)

// WithTrust gives the extractors their trust anchors.
func WithTrust(t *Trust) Option { return func(s *Store) { s.trust.Store(t) } }

// WithExclusive gives a lock to hold while records are changed, for a backend that several brokers write to. Without it, two
// brokers that change one name at the same moment may lose the change of one.
func WithExclusive(lock func(ctx context.Context) (release func(), err error)) Option {
	return func(s *Store) { s.exclusive = lock }
}

// New makes a Store; a lifetime of zero means DefaultLifetime.
func New(db backend, now func() time.Time, lifetime time.Duration, options ...Option) *Store {
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	s := &Store{db: db, now: now, lifetime: lifetime}
	for _, o := range options {
		o(s)
	}
	return s
}

// SetTrust changes the trust anchors of the extractors, for messages from now on.
func (s *Store) SetTrust(t *Trust) { s.trust.Store(t) }

func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	s.writing.Lock()
	if s.exclusive == nil {
		return s.writing.Unlock, nil
	}
	release, err := s.exclusive(ctx)
	if err != nil {
		s.writing.Unlock()
		return nil, fmt.Errorf("locking reference values: %w", err)
	}
	return func() { release(); s.writing.Unlock() }, nil
}

// Register stores the values of a message, all or none, and returns their names. by is the administrator who sends it; what
// nobody signed is taken from an administrator only.
func (s *Store) Register(ctx context.Context, message []byte, by string) ([]string, error) {
	in, err := s.read(message, by)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	batch := make(map[string]*Record, len(in))
	names := make([]string, 0, len(in))
	for _, r := range in {
		old, err := s.live(ctx, r.name)
		if err != nil {
			return nil, err
		}
		if batch[r.name], err = merge(old, r); err != nil {
			return nil, err
		}
		names = append(names, r.name)
	}
	sort.Strings(names)
	if err := s.write(ctx, batch); err != nil {
		return nil, err
	}
	return names, nil
}

// Lookup returns an unexpired value, or nil when there is none. Of an array only the unexpired elements are returned.
func (s *Store) Lookup(ctx context.Context, name string) (json.RawMessage, error) {
	r, err := s.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

// Get returns the record of an unexpired value, or store.ErrNotFound. Elements that are expired are left out.
func (s *Store) Get(ctx context.Context, name string) (*Record, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	r, err := s.live(ctx, name)
	if err == nil && r == nil {
		err = store.ErrNotFound
	}
	return r, err
}

// live returns what is unexpired of a record, nil when that is nothing.
func (s *Store) live(ctx context.Context, name string) (*Record, error) {
	raw, err := s.db.Get(ctx, store.ReferenceValues, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := decode(name, raw)
	if err != nil || r == nil {
		return nil, err
	}
	return r.at(s.now())
}

// List returns all records in name order, expired ones too. Of a record that is not expired as a whole, expired elements are
// left out, as nobody is to take them for accepted.
func (s *Store) List(ctx context.Context) ([]Record, error) {
	records, now := []Record{}, s.now()
	err := s.db.Each(ctx, store.ReferenceValues, func(key string, value []byte) error {
		r, err := decode(key, value)
		if err != nil || r == nil {
			return err
		}
		live, err := r.at(now)
		if err != nil {
			return err
		}
		if live == nil {
			live = r
		}
		records = append(records, *live)
		return nil
	})
	return records, err
}

// Delete removes a value with all its alternatives, or returns store.ErrNotFound.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.stored(ctx, name)
	if err != nil {
		return err
	}
	err = s.db.Delete(ctx, store.ReferenceValues, name)
	if r == nil && err == nil {
		err = store.ErrNotFound // what was left of an earlier removal
	}
	return err
}

// stored returns a record as it is stored, expired or not; nil for one that was removed.
func (s *Store) stored(ctx context.Context, name string) (*Record, error) {
	raw, err := s.db.Get(ctx, store.ReferenceValues, name)
	if err != nil {
		return nil, err
	}
	return decode(name, raw)
}

// write stores records, all or none; nil ones are removed. The backend writes several values at once but removes one at a
// time, so that removed records are first overwritten by a mark, which counts as nothing, and then cleared away.
func (s *Store) write(ctx context.Context, records map[string]*Record) error {
	batch := make(map[string][]byte, len(records))
	for name, r := range records {
		raw, err := encodeRecord(name, r)
		if err != nil {
			return err
		}
		batch[name] = raw
	}
	if err := s.db.Put(ctx, store.ReferenceValues, batch); err != nil {
		return fmt.Errorf("storing reference values: %w", err)
	}
	for name, r := range records {
		if r != nil {
			continue
		}
		if err := s.db.Delete(ctx, store.ReferenceValues, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("clearing reference value %q away, which is removed: %w", name, err)
		}
	}
	return nil
}
