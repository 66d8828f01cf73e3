package rego

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/cloister/cloister/broker/store"
)

// ErrUnknown marks a policy id that has no policy.
var ErrUnknown = errors.New("no such policy")

const suffix = ".rego"

var policyID = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\z`)

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	Put(ctx context.Context, ns string, values map[string][]byte) error
	PutNew(ctx context.Context, ns, key string, value []byte) (bool, error)
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

// Set is a stored family of policies, compiled when first used.
type Set struct {
	db backend
	ns string

	mu       sync.Mutex
	compiled map[string]compiled
}

type compiled struct {
	sum    [sha256.Size]byte
	policy *Policy
}

// NewSet makes a Set over a namespace of the store.
func NewSet(db backend, ns string) *Set {
	return &Set{db: db, ns: ns, compiled: map[string]compiled{}}
}

// Put checks and stores a policy.
func (s *Set) Put(ctx context.Context, id, text string) error {
	if err := s.check(id, text); err != nil {
		return err
	}
	if err := s.db.Put(ctx, s.ns, map[string][]byte{id + suffix: []byte(text)}); err != nil {
		return fmt.Errorf("storing policy %s: %w", id, err)
	}
	return nil
}

// PutDefault stores a policy unless there is one of that id.
func (s *Set) PutDefault(ctx context.Context, id, text string) error {
	if err := s.check(id, text); err != nil {
		return err
	}
	if _, err := s.db.PutNew(ctx, s.ns, id+suffix, []byte(text)); err != nil {
		return fmt.Errorf("storing default policy %s: %w", id, err)
	}
	return nil
}

// ValidID checks the form of a policy id.
func ValidID(id string) error {
	if !policyID.MatchString(id) {
		return fmt.Errorf("policy id %.64q: want up to 128 letters, digits, '_', '-' and inner '.': %w", id, ErrPolicy)
	}
	return nil
}

func (s *Set) check(id, text string) error {
	if err := ValidID(id); err != nil {
		return err
	}
	_, err := Compile(id, text)
	return err
}

// Text returns a policy as it was stored, or an error that wraps ErrUnknown.
func (s *Set) Text(ctx context.Context, id string) (string, error) {
	text, err := s.db.Get(ctx, s.ns, id+suffix)
	if errors.Is(err, store.ErrNotFound) {
		return "", fmt.Errorf("policy %q: %w", id, ErrUnknown)
	}
	if err != nil {
		return "", fmt.Errorf("reading policy %s: %w", id, err)
	}
	return string(text), nil
}

// Get returns a compiled policy, or an error that wraps ErrUnknown.
func (s *Set) Get(ctx context.Context, id string) (*Policy, error) {
	text, err := s.db.Get(ctx, s.ns, id+suffix)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("policy %q: %w", id, ErrUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("reading policy %s: %w", id, err)
	}
	sum := sha256.Sum256(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.compiled[id]; ok && c.sum == sum {
		return c.policy, nil
	}
	p, err := Compile(id, string(text))
	if err != nil {
		return nil, err
	}
	s.compiled[id] = compiled{sum: sum, policy: p}
	return p, nil
}

// IDs lists the policies.
func (s *Set) IDs(ctx context.Context) ([]string, error) {
	ids := []string{}
	err := s.db.Each(ctx, s.ns, func(key string, _ []byte) error {
		if id, ok := strings.CutSuffix(key, suffix); ok {
			ids = append(ids, id)
		}
		return nil
	})
	return ids, err
}
