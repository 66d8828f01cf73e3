package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/paths"
)

// reservation is a pod's directory with its lock.
type reservation struct {
	run  string
	dir  string
	lock *paths.Lock
}

// ErrRunning is wrapped by the error about a pod that runs already.
var ErrRunning = errors.New("a pod of this name is running")

// lockAll excludes other processes from making and removing pod directories.
func lockAll(ctx context.Context, run string) (*paths.Lock, error) {
	return paths.WaitLock(ctx, filepath.Join(run, ".lock"))
}

// reserve makes the directory of a new pod. What a killed supervisor of a pod with that name left is removed first.
func reserve(ctx context.Context, run, name string) (*reservation, error) {
	all, err := lockAll(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("reserving pod %s: %w", name, err)
	}
	defer all.Unlock()
	dir := filepath.Join(run, name)
	if _, err := os.Lstat(dir); err == nil {
		if err := cleanOne(ctx, dir); errors.Is(err, paths.ErrLocked) {
			return nil, fmt.Errorf("reserving pod %s: %w", name, ErrRunning)
		} else if err != nil {
			return nil, fmt.Errorf("reserving pod %s: %w", name, err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("reserving pod %s: %w", name, err)
	}
	lock, err := paths.TryLock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("reserving pod %s: %w", name, err)
	}
	return &reservation{run: run, dir: dir, lock: lock}, nil
}

// release removes the directory.
func (r *reservation) release(ctx context.Context) error {
	all, err := lockAll(ctx, r.run)
	if err != nil {
		return err
	}
	defer all.Unlock()
	defer r.lock.Unlock()
	return os.RemoveAll(r.dir)
}

// CleanStale removes what killed supervisors left and returns the names of their pods. Every program that starts or lists pods calls it
// first.
func CleanStale(ctx context.Context, dirs paths.Dirs) ([]string, error) {
	all, err := lockAll(ctx, dirs.Run)
	if err != nil {
		return nil, fmt.Errorf("cleaning up after killed supervisors: %w", err)
	}
	defer all.Unlock()
	entries, err := os.ReadDir(dirs.Run)
	if err != nil {
		return nil, fmt.Errorf("cleaning up after killed supervisors: %w", err)
	}
	var cleaned []string
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || checkName(e.Name()) != nil {
			continue
		}
		switch err := cleanOne(ctx, filepath.Join(dirs.Run, e.Name())); {
		case err == nil:
			cleaned = append(cleaned, e.Name())
		case !errors.Is(err, paths.ErrLocked):
			errs = append(errs, fmt.Errorf("cleaning up pod %s: %w", e.Name(), err))
		}
	}
	return cleaned, errors.Join(errs...)
}

// cleanOne removes one pod directory unless its supervisor lives, which is paths.ErrLocked.
func cleanOne(ctx context.Context, dir string) error {
	lock, err := paths.TryLock(filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := qemu.CleanStale(ctx, filepath.Join(dir, vmDir)); err != nil {
		return err
	}
	s, err := readState(dir)
	switch {
	case err == nil && !s.Done():
		now := time.Now().UTC()
		s.Phase, s.Ended, s.Error = Failed, &now, "the supervisor was killed; its virtual machine ended with it"
		for i := range s.Containers {
			if s.Containers[i].State == ContainerRunning {
				s.Containers[i].State, s.Containers[i].Ended = ContainerExited, &now
			}
		}
		if _, err := os.Stat(s.LogDir); err == nil {
			if err := writeState(s.LogDir, &s); err != nil {
				return err
			}
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		// A state that cannot be read is no reason to keep the rest.
	}
	return os.RemoveAll(dir)
}
