package store

import (
	"context"
	"errors"
	"fmt"
)

// Swap is part of Store.
func (b *Bolt) Swap(ctx context.Context, ns string, changes map[string]Change) error {
	for key, c := range changes {
		if err := CheckChange(ns, key, c); err != nil {
			return err
		}
	}
	return b.update(ctx, ns, func(s space) error {
		for key, c := range changes {
			if err := s.change(key, c); err != nil {
				return fmt.Errorf("changing %s/%s: %w", ns, key, err)
			}
		}
		return nil
	})
}

func (s space) change(key string, c Change) error {
	_, m, err := s.get(key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if present := err == nil; present == c.Absent || present && m.version != c.Version {
		return ErrChanged
	}
	if c.Value == nil {
		return s.remove([]byte(key))
	}
	_, err = s.put(key, c.Value, 0)
	return err
}
