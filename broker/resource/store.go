// Package resource keeps the secrets a guest may fetch and decides who may fetch them.
//
// Secrets are sealed at rest and bound to their path. The decision is a Rego policy over the claims of a verified
// attestation token (kbs-protocol.md section 7); the default allows only guests whose every appraisal is affirming.
package resource

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/cloister/cloister/broker/store"
)

// ErrPath is returned for a resource path that no resource can have.
var ErrPath = errors.New("a resource path is <repository>/<type>/<tag> of letters, digits, '_', '-' and inner '.'")

const (
	maxSegment = 256
	// MaxSize bounds one secret; the HTTP body limit is smaller.
	MaxSize = 8 << 20
)

var segment = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]*\z`)

type backend interface {
	Get(ctx context.Context, ns, key string) ([]byte, error)
	Put(ctx context.Context, ns string, values map[string][]byte) error
	Delete(ctx context.Context, ns, key string) error
	Each(ctx context.Context, ns string, fn func(key string, value []byte) error) error
}

type sealer interface {
	Seal(place string, plaintext []byte) ([]byte, error)
	Open(place string, sealed []byte) ([]byte, error)
}

// Path is a checked resource path.
type Path struct{ repository, kind, tag string }

// String is the path with slashes.
func (p Path) String() string { return p.repository + "/" + p.kind + "/" + p.tag }

// Segments is the path as the resource policy sees it.
func (p Path) Segments() []string { return []string{p.repository, p.kind, p.tag} }

// ParsePath checks a path. The error wraps ErrPath.
func ParsePath(segments []string) (Path, error) {
	if len(segments) != 3 {
		return Path{}, fmt.Errorf("path has %d parts: %w", len(segments), ErrPath)
	}
	for _, s := range segments {
		if len(s) > maxSegment || !segment.MatchString(s) {
			return Path{}, fmt.Errorf("path part %.64q: %w", s, ErrPath)
		}
	}
	return Path{segments[0], segments[1], segments[2]}, nil
}

// Store keeps sealed secrets.
type Store struct {
	db  backend
	key sealer
}

// NewStore makes a Store over db, sealed with key.
func NewStore(db backend, key sealer) *Store { return &Store{db: db, key: key} }

func place(p Path) string { return "resource:" + p.String() }

// Put stores or overwrites a secret.
func (s *Store) Put(ctx context.Context, p Path, secret []byte) error {
	if len(secret) > MaxSize {
		return fmt.Errorf("resource has %d bytes, at most %d are taken", len(secret), MaxSize)
	}
	sealed, err := s.key.Seal(place(p), secret)
	if err != nil {
		return fmt.Errorf("sealing resource %s: %w", p, err)
	}
	if err := s.db.Put(ctx, store.Resources, map[string][]byte{p.String(): sealed}); err != nil {
		return fmt.Errorf("storing resource %s: %w", p, err)
	}
	return nil
}

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (s *Store) Get(ctx context.Context, p Path) ([]byte, error) {
	sealed, err := s.db.Get(ctx, store.Resources, p.String())
	if err != nil {
		return nil, fmt.Errorf("resource %s: %w", p, err)
	}
	secret, err := s.key.Open(place(p), sealed)
	if err != nil {
		return nil, fmt.Errorf("opening resource %s: %w", p, err)
	}
	return secret, nil
}

// Delete removes a secret, or returns an error that wraps store.ErrNotFound.
func (s *Store) Delete(ctx context.Context, p Path) error {
	if err := s.db.Delete(ctx, store.Resources, p.String()); err != nil {
		return fmt.Errorf("resource %s: %w", p, err)
	}
	return nil
}

// Count tells how many secrets there are; their names stay here.
func (s *Store) Count(ctx context.Context) (int, error) {
	n := 0
	err := s.db.Each(ctx, store.Resources, func(string, []byte) error { n++; return nil })
	return n, err
}

// SplitPath cuts a URL path into segments without cleaning it: "a//b" and "a/../b" keep their odd parts and are refused.
func SplitPath(path string) []string { return strings.Split(path, "/") }
