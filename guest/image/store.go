package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// store holds the unpacked layers of this guest, each in its own directory, and who uses them.
// It lives in memory: after a restart of the guest nothing of it is trusted or left.
type store struct {
	dir string

	mu     sync.Mutex
	next   int
	layers map[string]*stored // by layer id
}

type stored struct {
	dir   string
	users int // mounted root file systems and pulls under way
}

// newStore makes an empty store below workDir. Layers of an earlier process were verified by that process, which
// this one cannot know, and are removed.
func newStore(workDir string) (*store, error) {
	dir := filepath.Join(workDir, "layers")
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("removing old image layers: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making layer directory: %w", err)
	}
	return &store{dir: dir, layers: map[string]*stored{}}, nil
}

// use returns the directory of a layer that is present, and counts one more user.
func (s *store) use(id string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[id]
	if l == nil {
		return "", false
	}
	l.users++
	return l.dir, true
}

// add makes a layer with fill and counts one user. If fill fails, nothing of the layer is left.
func (s *store) add(ctx context.Context, id string, fill func(ctx context.Context, dir string) error) (string, error) {
	s.mu.Lock()
	s.next++
	dir := filepath.Join(s.dir, strconv.Itoa(s.next))
	s.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("making layer directory: %w", err)
	}
	if err := fill(ctx, dir); err != nil {
		if rerr := os.RemoveAll(dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("removing the incomplete layer: %w", rerr))
		}
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[id] = &stored{dir: dir, users: 1}
	return dir, nil
}

// release gives up one use of each layer. The layers stay for the next container.
func (s *store) release(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if l := s.layers[id]; l != nil && l.users > 0 {
			l.users--
		}
	}
}

// prune removes the layers that nobody uses.
func (s *store) prune() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id, l := range s.layers {
		if l.users == 0 {
			delete(s.layers, id)
			errs = append(errs, os.RemoveAll(l.dir))
		}
	}
	return errors.Join(errs...)
}
