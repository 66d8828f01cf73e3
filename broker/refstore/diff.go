package refstore

import (
	"context"
	"encoding/json"
	"errors"
	"sort"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// Change is one value that a registration changes: an element of a list, or a value that is no list.
type Change struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
	// Was is the value that is replaced, nil when the value stays and only its expiry changes.
	Was json.RawMessage `json:"was,omitempty"`
	// Expiration is when the value ends after the change; for one that is removed, when it would have.
	Expiration time.Time `json:"expiration"`
	// WasExpiration is when a value that is changed ended before.
	WasExpiration time.Time `json:"was_expiration,omitzero"`
}

// Diff tells what registering a message would do, without doing it: which values would be accepted that are not now, which
// would no longer be, and which would be replaced or get another expiry. All are in name order.
func (s *Store) Diff(ctx context.Context, message []byte) (added, removed, changed []Change, err error) {
	in, err := s.read(message, "diff")
	if err != nil {
		return nil, nil, nil, err
	}
	sort.Slice(in, func(i, j int) bool { return in[i].name < in[j].name })
	for _, r := range in {
		old, err := s.live(ctx, r.name)
		if err != nil {
			return nil, nil, nil, err
		}
		next, err := merge(old, r)
		if err != nil {
			return nil, nil, nil, err
		}
		a, d, c, err := compare(old, next)
		if err != nil {
			return nil, nil, nil, err
		}
		added, removed, changed = append(added, a...), append(removed, d...), append(changed, c...)
	}
	return added, removed, changed, nil
}

func compare(old, next *Record) (added, removed, changed []Change, err error) {
	had, hadOrder, err := index(old)
	if err != nil {
		return nil, nil, nil, err
	}
	has, hasOrder, err := index(next)
	if err != nil {
		return nil, nil, nil, err
	}
	if old != nil && !old.List() && !next.List() && !sameJSON(old.Value, next.Value) {
		return nil, nil, []Change{{
			Name: next.Name, Value: next.Value, Was: old.Value, Expiration: next.Expiration, WasExpiration: old.Expiration,
		}}, nil
	}
	for _, key := range hasOrder {
		c := Change{Name: next.Name, Value: has[key].Value, Expiration: has[key].Expiration()}
		was := had[key]
		switch {
		case was == nil || old.List() != next.List():
			added = append(added, c)
		case !was.Expiration().Equal(c.Expiration):
			c.WasExpiration = was.Expiration()
			changed = append(changed, c)
		}
	}
	for _, key := range hadOrder {
		if has[key] == nil || old.List() != next.List() {
			removed = append(removed, Change{Name: next.Name, Value: had[key].Value, Expiration: had[key].Expiration()})
		}
	}
	return added, removed, changed, nil
}

// Compare is Diff against records that List told of elsewhere. The expiry of what is new is that of DefaultLifetime.
func Compare(ctx context.Context, records []Record, message []byte, now time.Time) (added, removed, changed []Change, err error) {
	s := New(snapshot(records), func() time.Time { return now }, 0)
	return s.Diff(ctx, message)
}

// snapshot is a backend of records that are only read.
type snapshot []Record

var errSnapshot = errors.New("records to compare with are not a store")

// Get is part of backend.
func (s snapshot) Get(_ context.Context, _, key string) ([]byte, error) {
	for i := range s {
		if s[i].Name == key {
			return encodeRecord(key, &s[i])
		}
	}
	return nil, store.ErrNotFound
}

// Load is part of backend.
func (snapshot) Load(context.Context, string, string) (store.Entry, error) {
	return store.Entry{}, errSnapshot
}

// Swap is part of backend.
func (snapshot) Swap(context.Context, string, map[string]store.Change) error { return errSnapshot }

// Each is part of backend.
func (snapshot) Each(context.Context, string, func(string, []byte) error) error { return errSnapshot }
