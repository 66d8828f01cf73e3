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
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	Swap(ctx context.Context, ns string, changes map[string]store.Change) error
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

// Store is a set of reference values.
type Store struct {
	db       backend
	now      func() time.Time
	lifetime time.Duration
	trust    atomic.Pointer[Trust]
	// writing lets one caller of this broker change records at a time; other brokers of the backend are told by versions.
	writing sync.Mutex
	known   known
}

// Option is something that a Store may have.
type Option func(*Store)

// WithTrust gives the extractors their trust anchors.
func WithTrust(t *Trust) Option { return func(s *Store) { s.trust.Store(t) } }

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

// Register stores the values of a message, all or none, and returns their names. by is the administrator who sends it; what
// nobody signed is taken from an administrator only.
func (s *Store) Register(ctx context.Context, message []byte, by string) ([]string, error) {
	in, err := s.read(message, by)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(in))
	for _, r := range in {
		names = append(names, r.name)
	}
	sort.Strings(names)
	err = s.update(ctx, func(load func(string) (*Record, error)) (map[string]*Record, error) {
		batch := make(map[string]*Record, len(in))
		for _, r := range in {
			old, err := s.holds(load(r.name))
			if err != nil {
				return nil, err
			}
			if batch[r.name], err = merge(old, r); err != nil {
				return nil, err
			}
		}
		return batch, nil
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}

// holds returns what is unexpired of a record that was read.
func (s *Store) holds(r *Record, err error) (*Record, error) {
	if err != nil || r == nil {
		return nil, err
	}
	return r.at(s.now())
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
	return s.known.live(name, raw, s.now())
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
	return s.update(ctx, func(load func(string) (*Record, error)) (map[string]*Record, error) {
		r, err := load(name)
		if err == nil && r == nil {
			err = store.ErrNotFound
		}
		return map[string]*Record{name: nil}, err
	})
}
