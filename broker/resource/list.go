package resource

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/store"
)

// MaxList is the most resources of one List.
const MaxList = 1000

// Info tells about a resource; it never holds its content.
type Info struct {
	Path     string    `json:"path"`
	Versions []Version `json:"versions"`
}

var errFull = errors.New("the list is full")

// List tells the names and versions of resources in the order of their names. The prefix is "" or the first parts of a
// path. What is listed comes after the path after; at most limit are (0 and more than MaxList mean MaxList). A caller
// that wants all asks again with the last path it got.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	if limit <= 0 || limit > MaxList {
		limit = MaxList
	}
	list := []Info{}
	err := s.each(ctx, func(p Path, versions []stored) error {
		name := p.String()
		if !within(prefix, name) || after != "" && name <= after {
			return nil
		}
		if len(list) == limit {
			return errFull
		}
		list = append(list, Info{Path: name, Versions: public(versions)})
		return nil
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, fmt.Errorf("listing resources: %w", err)
	}
	return list, nil
}

// Count tells how many secrets there are; their names stay here.
func (s *Store) Count(ctx context.Context) (int, error) {
	n := 0
	err := s.db.Each(ctx, store.Resources, func(string, []byte) error { n++; return nil })
	return n, err
}

// each reads the heads of all resources; fn must not keep what it gets.
func (s *Store) each(ctx context.Context, fn func(p Path, versions []stored) error) error {
	return s.db.Each(ctx, store.Resources, func(key string, value []byte) error {
		p, err := ParsePath(SplitPath(key))
		if err != nil {
			return fmt.Errorf("the store holds a resource %.64q: %w", key, err)
		}
		versions, err := decode(value)
		if err != nil {
			return fmt.Errorf("reading resource %s: %w", p, err)
		}
		return fn(p, versions)
	})
}
