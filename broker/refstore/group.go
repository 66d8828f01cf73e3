package refstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"

	"github.com/cloister/cloister/broker/store"
)

// Remove takes one element out of a value, whoever registered it, or returns store.ErrNotFound. A value that is no list is
// removed when it equals the one given; a list that loses its last element is removed.
func (s *Store) Remove(ctx context.Context, name string, value json.RawMessage) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkJSON(value); err != nil {
		return fmt.Errorf("value to remove from %q: %w", name, err)
	}
	return s.update(ctx, func(load func(string) (*Record, error)) (map[string]*Record, error) {
		r, err := load(name)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return nil, store.ErrNotFound
		}
		out := *r
		out.Elements = nil
		for _, e := range r.Elements {
			if !sameJSON(e.Value, value) {
				out.Elements = append(out.Elements, e)
			}
		}
		switch len(out.Elements) {
		case len(r.Elements):
			return nil, store.ErrNotFound
		case 0:
			return map[string]*Record{name: nil}, nil
		}
		return map[string]*Record{name: &out}, out.seal()
	})
}

// ListGroup returns a group's values in name order, each with the elements and approvals of the group alone, expired ones
// too.
func (s *Store) ListGroup(ctx context.Context, group string) ([]Record, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	records := []Record{}
	err := s.each(ctx, func(r *Record) error {
		part, err := r.filter(func(a Approval) bool { return a.Group == group })
		if err != nil || part == nil {
			return err
		}
		records = append(records, *part)
		return nil
	})
	return records, err
}

// Groups returns the names of all groups in order.
func (s *Store) Groups(ctx context.Context) ([]string, error) {
	seen := map[string]bool{}
	err := s.each(ctx, func(r *Record) error {
		for _, e := range r.Elements {
			for _, a := range e.Approvals {
				if a.Group != "" {
					seen[a.Group] = true
				}
			}
		}
		return nil
	})
	groups := make([]string, 0, len(seen))
	for g := range seen {
		groups = append(groups, g)
	}
	sort.Strings(groups)
	return groups, err
}

// DeleteGroup takes a group's approvals away, all or none, and returns the names it had, or store.ErrNotFound when there is no
// such group. Elements that others approved too stay.
func (s *Store) DeleteGroup(ctx context.Context, group string) ([]string, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	var names []string
	err := s.update(ctx, func(load func(string) (*Record, error)) (map[string]*Record, error) {
		var members []string
		err := s.each(ctx, func(r *Record) error {
			if r.of(group) {
				members = append(members, r.Name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		batch := map[string]*Record{}
		names = names[:0]
		for _, name := range members {
			r, err := load(name)
			if err != nil {
				return nil, err
			}
			if r == nil || !r.of(group) {
				continue // somebody else has just done it
			}
			if batch[name], err = r.filter(func(a Approval) bool { return a.Group != group }); err != nil {
				return nil, err
			}
			names = append(names, name)
		}
		if len(names) == 0 {
			return nil, store.ErrNotFound
		}
		return batch, nil
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}

// of tells whether a record has approvals of a group.
func (r *Record) of(group string) bool {
	return slices.ContainsFunc(r.Elements, func(e Element) bool { return e.of(group) >= 0 })
}

// each calls fn for all records in name order, expired ones too.
func (s *Store) each(ctx context.Context, fn func(r *Record) error) error {
	return s.db.Each(ctx, store.ReferenceValues, func(key string, value []byte) error {
		r, err := decode(key, value)
		if err != nil || r == nil {
			return err
		}
		r.Name = key
		return fn(r)
	})
}
