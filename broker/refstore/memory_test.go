package refstore

import (
	"context"
	"maps"
	"slices"

	"github.com/cloister/cloister/broker/store"
)

// memory is a backend for what writes often.
type memory map[string][]byte

func (m memory) Get(_ context.Context, _, key string) ([]byte, error) {
	v, ok := m[key]
	if !ok {
		return nil, store.ErrNotFound
	}
	return v, nil
}

func (m memory) Load(ctx context.Context, ns, key string) (store.Entry, error) {
	v, err := m.Get(ctx, ns, key)
	return store.Entry{Value: v}, err
}

func (m memory) Swap(_ context.Context, _ string, changes map[string]store.Change) error {
	for key, c := range changes {
		if c.Value == nil {
			delete(m, key)
		} else {
			m[key] = c.Value
		}
	}
	return nil
}

func (m memory) Each(_ context.Context, _ string, fn func(key string, value []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := fn(key, m[key]); err != nil {
			return err
		}
	}
	return nil
}
