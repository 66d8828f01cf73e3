package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// scopeMark separates a namespace from the tenant whose part of it is meant.
const scopeMark = "@"

var tenantName = regexp.MustCompile(`\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\z`)

// ValidTenant reports whether a name can be a tenant's: a DNS label (RFC 1123) in lower case.
func ValidTenant(name string) bool { return tenantName.MatchString(name) }

var scopeName = regexp.MustCompile(`\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[0-9a-f]{16})?\z`)

// ValidScope reports whether a part of a store can have a name: that of a tenant, and behind it what tells the tenant from earlier and
// later ones of its name.
func ValidScope(name string) bool { return scopeName.MatchString(name) }

// Scoped is the part of a store that belongs to one tenant. Its namespaces are the tenant's own, so that no key of another tenant
// can be named, and each has its own limit. A write that passes a limit is refused with ErrFull; those of the same moment may pass it
// together by what they write.
type Scoped struct {
	whole  Store
	tenant string
	limit  func(ns string) Limit
}

var _ Store = (*Scoped)(nil)

// Scope returns a tenant's part of a store. limit tells that of a namespace as it is now; nil means none.
func Scope(whole Store, tenant string, limit func(ns string) Limit) (*Scoped, error) {
	if !ValidScope(tenant) {
		return nil, fmt.Errorf("tenant name %.80q: want up to 63 letters a to z, digits and inner hyphens", tenant)
	}
	if limit == nil {
		limit = func(string) Limit { return Limit{} }
	}
	return &Scoped{whole, tenant, limit}, nil
}

func (s *Scoped) ns(base string) string { return base + scopeMark + s.tenant }

// room refuses a write of more bytes in more entries than a namespace has room for.
func (s *Scoped) room(ctx context.Context, ns string, entries int, bytes int64) error {
	limit := s.limit(ns)
	if limit == (Limit{}) {
		return nil
	}
	u, err := s.whole.Usage(ctx, s.ns(ns))
	if err != nil {
		return err
	}
	after := Usage{u.Entries + entries, u.Bytes + bytes}
	if after.Exceeds(limit) && (entries > 0 || bytes > 0) {
		return fmt.Errorf("%w: tenant %s has %d entries of %d bytes, at most %s are allowed", ErrFull, s.tenant, u.Entries, u.Bytes, limit)
	}
	return nil
}

// Get is part of Store.
func (s *Scoped) Get(ctx context.Context, ns, key string) ([]byte, error) {
	return s.whole.Get(ctx, s.ns(ns), key)
}

// Put is part of Store.
func (s *Scoped) Put(ctx context.Context, ns string, values map[string][]byte) error {
	if s.limit(ns) != (Limit{}) {
		entries, bytes := 0, int64(0)
		for key, value := range values {
			old, err := s.whole.Get(ctx, s.ns(ns), key)
			if err != nil {
				entries++
			}
			bytes += int64(len(value) - len(old))
		}
		if err := s.room(ctx, ns, entries, bytes); err != nil {
			return err
		}
	}
	return s.whole.Put(ctx, s.ns(ns), values)
}

// PutNew is part of Store.
func (s *Scoped) PutNew(ctx context.Context, ns, key string, value []byte) (bool, error) {
	if err := s.room(ctx, ns, 1, int64(len(value))); err != nil {
		return false, err
	}
	return s.whole.PutNew(ctx, s.ns(ns), key, value)
}

// Delete is part of Store.
func (s *Scoped) Delete(ctx context.Context, ns, key string) error {
	return s.whole.Delete(ctx, s.ns(ns), key)
}

// Each is part of Store.
func (s *Scoped) Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error {
	return s.whole.Each(ctx, s.ns(ns), fn)
}

// Back is part of Store.
func (s *Scoped) Back(ctx context.Context, ns, before string, fn func(key string, value []byte) error) error {
	return s.whole.Back(ctx, s.ns(ns), before, fn)
}

// Append is part of Store. Its own bound counts, not that of the tenant.
func (s *Scoped) Append(ctx context.Context, ns, key string, value []byte, max int) error {
	return s.whole.Append(ctx, s.ns(ns), key, value, max)
}

// Load is part of Store.
func (s *Scoped) Load(ctx context.Context, ns, key string) (Entry, error) {
	return s.whole.Load(ctx, s.ns(ns), key)
}

// Create is part of Store. Both the caller's limit and the tenant's count.
func (s *Scoped) Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit Limit) (Entry, error) {
	if err := s.room(ctx, ns, 1, int64(len(value))); err != nil {
		return Entry{}, err
	}
	return s.whole.Create(ctx, s.ns(ns), key, value, lifetime, limit)
}

// CompareAndSwap is part of Store. Both the caller's limit and the tenant's count.
func (s *Scoped) CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit Limit) (int64, error) {
	if s.limit(ns) != (Limit{}) {
		old, err := s.whole.Get(ctx, s.ns(ns), key)
		if err != nil {
			return 0, err
		}
		if err := s.room(ctx, ns, 0, int64(len(value)-len(old))); err != nil {
			return 0, err
		}
	}
	return s.whole.CompareAndSwap(ctx, s.ns(ns), key, version, value, limit)
}

// Swap is part of Store.
func (s *Scoped) Swap(ctx context.Context, ns string, changes map[string]Change) error {
	if s.limit(ns) != (Limit{}) {
		entries, bytes := 0, int64(0)
		for key, c := range changes {
			old, err := s.whole.Get(ctx, s.ns(ns), key)
			switch {
			case c.Value == nil:
				entries--
			case err != nil:
				entries++
			}
			bytes += int64(len(c.Value) - len(old))
		}
		if err := s.room(ctx, ns, entries, bytes); err != nil {
			return err
		}
	}
	return s.whole.Swap(ctx, s.ns(ns), changes)
}

// DeleteExpired is part of Store.
func (s *Scoped) DeleteExpired(ctx context.Context, ns string) (int, error) {
	return s.whole.DeleteExpired(ctx, s.ns(ns))
}

// Usage is part of Store.
func (s *Scoped) Usage(ctx context.Context, ns string) (Usage, error) {
	return s.whole.Usage(ctx, s.ns(ns))
}

// Health is part of Store.
func (s *Scoped) Health(ctx context.Context) error { return s.whole.Health(ctx) }

// Close does nothing: the whole store is somebody else's.
func (s *Scoped) Close() error { return nil }

// Clear removes everything that the tenant has stored.
func (s *Scoped) Clear(ctx context.Context) error {
	for _, ns := range namespaces {
		var keys []string
		err := s.Each(ctx, ns, func(key string, _ []byte) error { keys = append(keys, key); return nil })
		if err != nil {
			return fmt.Errorf("listing %s of tenant %s: %w", ns, s.tenant, err)
		}
		for _, key := range keys {
			if err := s.Delete(ctx, ns, key); err != nil && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("removing %s of tenant %s: %w", ns, s.tenant, err)
			}
		}
		if _, err := s.DeleteExpired(ctx, ns); err != nil {
			return fmt.Errorf("removing %s of tenant %s: %w", ns, s.tenant, err)
		}
	}
	return nil
}
