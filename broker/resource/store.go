// Package resource keeps the secrets a guest may fetch and decides who may fetch them.
//
// Secrets are sealed at rest and bound to their path, version and time. Each write makes a version; the newest is served
// and a bounded number of older ones stays readable by number. All versions of a resource are one value of the store, so
// a crash leaves the old set or the new one. The decision is a Rego policy over the claims of a verified attestation
// token (kbs-protocol.md section 7); the default allows only guests whose every appraisal is affirming.
//
// Back ends elsewhere are in the folders below: vault and directory.
package resource

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// MaxSize bounds one secret; the HTTP body limit is smaller.
const MaxSize = 8 << 20

var (
	// ErrQuota is returned for a write that a repository has no room for.
	ErrQuota = errors.New("the quota of the repository is used up")
	// ErrNoSize is returned for a rotation that does not say how many bytes, when the newest version has none.
	ErrNoSize = errors.New("the newest version is empty, so a size has to be given (--size)")
	// ErrReadOnly is returned by back ends that do not write.
	ErrReadOnly = errors.New("this back end of resources is read-only")
)

type backend interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit store.Limit) (store.Entry, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
	Delete(ctx context.Context, ns, key string) error
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// Store keeps sealed secrets.
type Store struct {
	db  backend
	key sealer
	cfg Config
	now func() time.Time
	// writing holds one value while somebody writes.
	writing chan struct{}
	// used is how much each repository holds; nil when it has to be counted. It belongs to who is writing.
	used map[string]usage
}

// NewStore makes a Store over db, sealed with key, with the default configuration.
func NewStore(db backend, key sealer) *Store {
	return &Store{db: db, key: key, cfg: DefaultConfig(), now: time.Now, writing: make(chan struct{}, 1)}
}

// OpenStore makes a Store over db, sealed with key.
func OpenStore(db backend, key sealer, c Config, now func() time.Time) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := NewStore(db, key)
	s.cfg, s.now = c, now
	return s, nil
}

// Put stores a secret as the newest version.
func (s *Store) Put(ctx context.Context, p Path, secret []byte) error {
	_, err := s.PutVersion(ctx, p, secret)
	return err
}

// PutVersion stores a secret as the newest version and tells which one that is.
func (s *Store) PutVersion(ctx context.Context, p Path, secret []byte) (Version, error) {
	if len(secret) > MaxSize {
		return Version{}, fmt.Errorf("resource has %d bytes, at most %d are taken", len(secret), MaxSize)
	}
	return s.add(ctx, p, func([]stored) ([]byte, error) { return secret, nil })
}

// Rotate replaces the secret of an existing resource by size random bytes and tells the new version. A size of 0 keeps
// that of the newest version.
func (s *Store) Rotate(ctx context.Context, p Path, size int) (Version, error) {
	if size < 0 || size > MaxSize {
		return Version{}, fmt.Errorf("rotating resource %s: size is %d, want 0 to %d", p, size, MaxSize)
	}
	return s.add(ctx, p, func(versions []stored) ([]byte, error) {
		if len(versions) == 0 {
			return nil, fmt.Errorf("resource %s: %w", p, store.ErrNotFound)
		}
		n := size
		if n == 0 {
			old, err := s.open(p, versions[0])
			if err != nil {
				return nil, err
			}
			if n = len(old); n == 0 {
				return nil, fmt.Errorf("rotating resource %s: %w", p, ErrNoSize)
			}
		}
		secret := make([]byte, n)
		_, err := rand.Read(secret)
		return secret, err
	})
}

// add makes a new version of what content returns.
func (s *Store) add(ctx context.Context, p Path, content func(versions []stored) ([]byte, error)) (Version, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Version{}, fmt.Errorf("storing resource %s: %w", p, err)
	}
	defer unlock()
	for range maxTries {
		var v Version
		if v, err = s.tryAdd(ctx, p, content); !errors.Is(err, errRaced) {
			return v, err
		}
	}
	return Version{}, err
}

func (s *Store) tryAdd(ctx context.Context, p Path, content func(versions []stored) ([]byte, error)) (Version, error) {
	entry, versions, err := s.load(ctx, p)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return Version{}, err
	}
	secret, err := content(versions)
	if err != nil {
		return Version{}, err
	}
	v := Version{Number: 1, Time: s.now().UTC(), Size: len(secret)}
	if len(versions) > 0 {
		v.Number = versions[0].Number + 1
	}
	sealed, err := s.key.Seal(versionPlace(p, v), secret)
	if err != nil {
		return Version{}, fmt.Errorf("sealing resource %s: %w", p, err)
	}
	next := append([]stored{{Version: v, sealed: sealed}}, versions...)
	next = fit(next[:min(len(next), s.cfg.OldVersions+1)])
	if err := s.admit(ctx, p, versions, next); err != nil {
		return Version{}, err
	}
	if err := s.write(ctx, p, entry, len(versions) > 0, next); err != nil {
		return Version{}, err
	}
	s.account(p, versions, next)
	return v, nil
}

// maxTries is how often a write that another broker was faster than is tried.
const maxTries = 20

// errRaced is a write that another broker was faster than.
var errRaced = errors.New("another broker keeps changing it")

// write replaces a record that is still the one that was loaded.
func (s *Store) write(ctx context.Context, p Path, entry store.Entry, present bool, next []stored) error {
	var err error
	if present {
		_, err = s.db.CompareAndSwap(ctx, store.Resources, p.String(), entry.Version, encode(next), store.Limit{})
	} else {
		_, err = s.db.Create(ctx, store.Resources, p.String(), encode(next), 0, store.Limit{})
	}
	if err == nil {
		return nil
	}
	s.used = nil // whether it was written may be unknown
	for _, raced := range []error{store.ErrChanged, store.ErrExists, store.ErrNotFound} {
		if errors.Is(err, raced) {
			return fmt.Errorf("storing resource %s: %w", p, errRaced)
		}
	}
	return fmt.Errorf("storing resource %s: %w", p, err)
}

// Get returns the newest version of a secret, or an error that wraps store.ErrNotFound.
func (s *Store) Get(ctx context.Context, p Path) ([]byte, error) {
	secret, _, err := s.GetVersion(ctx, p, 0)
	return secret, err
}

// GetVersion returns one version of a secret, 0 being the newest, or an error that wraps store.ErrNotFound.
func (s *Store) GetVersion(ctx context.Context, p Path, number uint64) ([]byte, Version, error) {
	versions, err := s.read(ctx, p)
	if err != nil {
		return nil, Version{}, err
	}
	for _, v := range versions {
		if number == 0 || v.Number == number {
			secret, err := s.open(p, v)
			return secret, v.Version, err
		}
	}
	return nil, Version{}, fmt.Errorf("resource %s has no version %d: %w", p, number, store.ErrNotFound)
}

// Versions tells the versions of a resource, the newest first, or returns an error that wraps store.ErrNotFound.
func (s *Store) Versions(ctx context.Context, p Path) ([]Version, error) {
	versions, err := s.read(ctx, p)
	return public(versions), err
}

// Delete removes every version of a secret, or returns an error that wraps store.ErrNotFound.
func (s *Store) Delete(ctx context.Context, p Path) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return fmt.Errorf("deleting resource %s: %w", p, err)
	}
	defer unlock()
	// How much goes away is only wanted for the quota: a damaged record must be deletable too.
	versions, err := s.read(ctx, p)
	if err != nil {
		s.used = nil
	}
	if err := s.db.Delete(ctx, store.Resources, p.String()); err != nil {
		s.used = nil
		return fmt.Errorf("resource %s: %w", p, err)
	}
	s.account(p, versions, nil)
	return nil
}

// Reseal seals every version again, so that nothing needs an older storage key any more, and tells how many resources
// there were. The sealer must open what any key still in use has sealed.
func (s *Store) Reseal(ctx context.Context) (int, error) {
	var paths []Path
	err := s.each(ctx, func(p Path, _ []stored) error { paths = append(paths, p); return nil })
	if err != nil {
		return 0, err
	}
	for i, p := range paths {
		if err := s.resealOne(ctx, p); err != nil && !errors.Is(err, store.ErrNotFound) {
			return i, err
		}
	}
	return len(paths), nil
}

func (s *Store) resealOne(ctx context.Context, p Path) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for range maxTries {
		if err = s.tryReseal(ctx, p); !errors.Is(err, errRaced) {
			return err
		}
	}
	return err
}

func (s *Store) tryReseal(ctx context.Context, p Path) error {
	entry, versions, err := s.load(ctx, p)
	if err != nil {
		return err
	}
	for i, v := range versions {
		secret, err := s.open(p, v)
		if err != nil {
			return err
		}
		v.Size, v.legacy = len(secret), false
		if v.sealed, err = s.key.Seal(versionPlace(p, v.Version), secret); err != nil {
			return fmt.Errorf("sealing resource %s: %w", p, err)
		}
		versions[i] = v
	}
	s.used = nil
	return s.write(ctx, p, entry, true, versions)
}

// lock lets one writer of this broker in at a time.
func (s *Store) lock(ctx context.Context) (func(), error) {
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.cfg.Shared {
		s.used = nil
	}
	return func() { <-s.writing }, nil
}

func (s *Store) read(ctx context.Context, p Path) ([]stored, error) {
	_, versions, err := s.load(ctx, p)
	return versions, err
}

func (s *Store) load(ctx context.Context, p Path) (store.Entry, []stored, error) {
	entry, err := s.db.Load(ctx, store.Resources, p.String())
	if err != nil {
		return entry, nil, fmt.Errorf("resource %s: %w", p, err)
	}
	versions, err := decode(entry.Value)
	if err != nil {
		return entry, nil, fmt.Errorf("reading resource %s: %w", p, err)
	}
	return entry, versions, nil
}

func (s *Store) open(p Path, v stored) ([]byte, error) {
	place := versionPlace(p, v.Version)
	if v.legacy {
		place = legacyPlace(p)
	}
	secret, err := s.key.Open(place, v.sealed)
	if err != nil {
		return nil, fmt.Errorf("opening resource %s: %w", p, err)
	}
	if !v.legacy && len(secret) != v.Size {
		return nil, fmt.Errorf("opening resource %s: version %d has %d bytes, its head says %d", p, v.Number, len(secret), v.Size)
	}
	return secret, nil
}
