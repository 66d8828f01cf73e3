package resource

import (
	"context"
	"slices"

	"github.com/cloister/cloister/broker/store"
)

// Paths are the paths of all secrets, in order. What they hold stays here.
func (s *Store) Paths(ctx context.Context) ([]string, error) {
	paths := []string{}
	err := s.db.Each(ctx, store.Resources, func(key string, _ []byte) error { paths = append(paths, key); return nil })
	slices.Sort(paths)
	return paths, err
}
