package refstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/store"
)

// maxTries is how often a change that another broker was faster than is tried. Each time some broker has got on.
const maxTries = 100

// update changes records, all or none, so that no change of another broker of the same backend is lost: change reads what it
// needs by load and returns the records to write, nil ones to be removed. It is called again when one of them was changed
// meanwhile, and may only write what it has loaded.
func (s *Store) update(ctx context.Context, change func(load func(name string) (*Record, error)) (map[string]*Record, error)) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	var err error
	for range maxTries {
		if err = s.tryUpdate(ctx, change); !errors.Is(err, store.ErrChanged) {
			return err
		}
	}
	return fmt.Errorf("storing reference values: other brokers keep changing them: %w", err)
}

func (s *Store) tryUpdate(ctx context.Context, change func(load func(name string) (*Record, error)) (map[string]*Record, error)) error {
	seen := map[string]store.Change{}
	load := func(name string) (*Record, error) {
		e, err := s.db.Load(ctx, store.ReferenceValues, name)
		if errors.Is(err, store.ErrNotFound) {
			seen[name] = store.Change{Absent: true}
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading reference value %q: %w", name, err)
		}
		seen[name] = store.Change{Version: e.Version}
		r, err := decode(name, e.Value)
		if r != nil {
			r.Name = name
		}
		return r, err
	}
	batch, err := change(load)
	if err != nil {
		return err
	}
	changes := make(map[string]store.Change, len(batch))
	for name, r := range batch {
		c, ok := seen[name]
		if !ok {
			return fmt.Errorf("reference value %q is written without having been read", name)
		}
		if r == nil && c.Absent {
			continue
		}
		if r != nil {
			if c.Value, err = encodeRecord(name, r); err != nil {
				return err
			}
		}
		changes[name] = c
	}
	if err := s.db.Swap(ctx, store.ReferenceValues, changes); err != nil {
		return fmt.Errorf("storing reference values: %w", err)
	}
	return nil
}
