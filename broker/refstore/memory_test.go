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

func (m memory) Put(_ context.Context, _ string, values map[string][]byte) error {
	maps.Copy(m, values)
	return nil
}

func (m memory) Delete(_ context.Context, _, key string) error {
	delete(m, key)
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
