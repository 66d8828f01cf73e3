package resource

import (
	"context"
	"errors"
	"fmt"
)

// maxOldVersions bounds a record; the format has one byte for the number of versions.
const maxOldVersions = 100

// Config bounds what is kept.
type Config struct {
	// OldVersions is how many versions of a resource are kept besides the newest; default 3.
	OldVersions int `toml:"old_versions"`
	// RepositoryBytes is how many bytes of secrets a repository (the first part of a path) may hold, kept versions
	// included; 0 is no limit.
	RepositoryBytes int64 `toml:"repository_bytes"`
	// RepositoryResources is how many resources a repository may hold; 0 is no limit.
	RepositoryResources int `toml:"repository_resources"`
	// Shared says that other brokers write to the store: what repositories hold is counted anew for each write. Quotas
	// can then be passed by what brokers write at the same moment.
	Shared bool `toml:"-"`
}

// DefaultConfig keeps 3 old versions and has no quota.
func DefaultConfig() Config { return Config{OldVersions: 3} }

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	if c.OldVersions < 0 || c.OldVersions > maxOldVersions {
		errs = append(errs, fmt.Errorf("old_versions is %d, want 0 to %d", c.OldVersions, maxOldVersions))
	}
	if c.RepositoryBytes < 0 {
		errs = append(errs, fmt.Errorf("repository_bytes is %d, want 0 (no limit) or more", c.RepositoryBytes))
	}
	if c.RepositoryResources < 0 {
		errs = append(errs, fmt.Errorf("repository_resources is %d, want 0 (no limit) or more", c.RepositoryResources))
	}
	return errors.Join(errs...)
}

// usage is what a repository holds.
type usage struct {
	bytes     int64
	resources int
}

// weigh is what one resource adds to its repository.
func weigh(versions []stored) usage {
	var u usage
	for _, v := range versions {
		size := v.Size
		if size < 0 {
			size = len(v.sealed) // a little too much, and only until the version is gone
		}
		u.bytes += int64(size)
	}
	if len(versions) > 0 {
		u.resources = 1
	}
	return u
}

func (u usage) change(before, after []stored) usage {
	b, a := weigh(before), weigh(after)
	return usage{u.bytes + a.bytes - b.bytes, u.resources + a.resources - b.resources}
}

func (s *Store) limited() bool { return s.cfg.RepositoryBytes > 0 || s.cfg.RepositoryResources > 0 }

// admit refuses a change that its repository has no room for. What makes a repository smaller is always let through, so
// that a quota that was lowered does not lock it.
func (s *Store) admit(ctx context.Context, p Path, before, after []stored) error {
	if !s.limited() {
		return nil
	}
	if s.used == nil {
		used := map[string]usage{}
		err := s.each(ctx, func(q Path, versions []stored) error {
			used[q.repository] = used[q.repository].change(nil, versions)
			return nil
		})
		if err != nil {
			return fmt.Errorf("counting what repository %s holds: %w", p.repository, err)
		}
		s.used = used
	}
	old := s.used[p.repository]
	u := old.change(before, after)
	if limit := s.cfg.RepositoryResources; limit > 0 && u.resources > limit && u.resources > old.resources {
		return fmt.Errorf("repository %s would hold %d resources, at most %d are allowed: %w", p.repository, u.resources, limit, ErrQuota)
	}
	if limit := s.cfg.RepositoryBytes; limit > 0 && u.bytes > limit && u.bytes > old.bytes {
		return fmt.Errorf("repository %s would hold %d bytes with the old versions that are kept, at most %d are allowed: %w",
			p.repository, u.bytes, limit, ErrQuota)
	}
	return nil
}

// account remembers a change that was made.
func (s *Store) account(p Path, before, after []stored) {
	if s.used == nil {
		return
	}
	u := s.used[p.repository].change(before, after)
	if u == (usage{}) {
		delete(s.used, p.repository)
		return
	}
	s.used[p.repository] = u
}
