package mapping

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/resource"
)

const (
	// maxPages and maxNames bound what a store can make a broker read for one list.
	maxPages = 200
	maxNames = 20000
)

// Pages reads one page of names; next is what the following one is asked with, "" after the last.
type Pages func(ctx context.Context, from string) (names []string, next string, err error)

// List tells which resources there are in the order of their paths, as resource.Store.List does. The store's own order is
// another, so all names are read.
func (s Store) List(ctx context.Context, c Config, pages Pages, prefix, after string, limit int) ([]resource.Info, error) {
	paths, err := s.paths(ctx, c, pages)
	if err != nil {
		return nil, err
	}
	if limit <= 0 || limit > resource.MaxList {
		limit = resource.MaxList
	}
	list := []resource.Info{}
	for _, p := range paths {
		within := prefix == "" || p == prefix || strings.HasPrefix(p, prefix+"/")
		if within && p > after && len(list) < limit {
			list = append(list, resource.Info{Path: p})
		}
	}
	return list, nil
}

// Count tells how many resources there are.
func (s Store) Count(ctx context.Context, c Config, pages Pages) (int, error) {
	paths, err := s.paths(ctx, c, pages)
	return len(paths), err
}

func (s Store) paths(ctx context.Context, c Config, pages Pages) ([]string, error) {
	if c.Mapping == Tag && c.InsecureAnyPath {
		return nil, fmt.Errorf("listing resources whose names say no repository: %w", ErrUnsupported)
	}
	var paths []string
	from, seen := "", 0
	for range maxPages {
		names, next, err := pages(ctx, from)
		if err != nil {
			return nil, fmt.Errorf("listing secrets: %w", err)
		}
		for _, name := range names {
			if p, ok := s.Path(c, name); ok {
				paths = append(paths, p.String())
			}
		}
		if seen += len(names); seen > maxNames {
			return nil, fmt.Errorf("listing secrets: there are more than %d; hint: give them a store of their own", maxNames)
		}
		if next == "" {
			slices.SortFunc(paths, cmp.Compare[string])
			return slices.Compact(paths), nil
		}
		from = next
	}
	return nil, fmt.Errorf("listing secrets: there are more than %d pages; hint: give them a store of their own", maxPages)
}
