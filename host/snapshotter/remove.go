package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
)

// blockmountPoint is short for the name of a layer's mount point.
const blockmountPoint = blockmount.MountPoint

// Remove forgets a snapshot. Its files go when the metadata has forgotten it; what cannot be removed is left to Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	var kind snapshots.Kind
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, kind, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	s.release(key)
	s.discard(s.dir(id))
	if kind == snapshots.KindCommitted {
		s.sweep()
	}
	return nil
}

// Cleanup removes what nobody needs any more and could not be removed at its time. containerd calls it after its own collection.
func (s *Snapshotter) Cleanup(context.Context) error {
	s.mu.Lock()
	var again []string
	for dir := range s.left {
		again = append(again, dir)
	}
	clear(s.left)
	clear(s.ahead) // an image that was to be unpacked is, or its caller has gone
	s.mu.Unlock()
	for _, dir := range again {
		s.discard(dir)
	}
	s.sweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir := range s.left {
		return fmt.Errorf("cleaning up: %s cannot be removed", dir)
	}
	return nil
}

// discard removes the directory of a snapshot or a layer that nothing names.
func (s *Snapshotter) discard(dir string) {
	if dir == "" {
		return
	}
	s.mu.Lock()
	err := unmountLayer(dir)
	s.mu.Unlock()
	if err == nil {
		err = os.RemoveAll(dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.log.Warn("removing a directory", "path", dir, "error", err)
		s.left[dir] = true
		return
	}
	delete(s.left, dir) // a snapshot may get the same number
}

// Unmount unmounts all layers, for who has no containers any more.
func (s *Snapshotter) Unmount() error {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, snapshotsDir))
	if err != nil {
		return fmt.Errorf("unmounting all layers: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range entries {
		errs = append(errs, unmountLayer(filepath.Join(s.cfg.Root, snapshotsDir, e.Name())))
	}
	return errors.Join(errs...)
}

// recover brings the root into order after the process before this one ended, however it did.
func (s *Snapshotter) recover(ctx context.Context) error {
	names := map[string]string{}
	infos := map[string]snapshots.Info{}
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error { // writing makes the file, so that reading works
		ids, err := storage.IDMap(ctx)
		if errdefs.IsNotFound(err) {
			return nil // a new one
		}
		if err != nil {
			return err
		}
		for id, name := range ids {
			_, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return err
			}
			names[id], infos[id] = name, info
			if info.Kind == snapshots.KindCommitted {
				continue
			}
			snap, err := storage.GetSnapshot(ctx, name)
			if err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(s.dir(id), extraction)); err != nil && len(snap.ParentIDs) > 0 {
				s.active[name] = snap.ParentIDs
				for _, p := range snap.ParentIDs {
					s.uses[p]++
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the snapshotter's metadata: %w", err)
	}
	for _, dir := range []string{ingestDir, snapshotsDir} {
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, dir))
		if err != nil {
			return fmt.Errorf("reading the snapshotter's root: %w", err)
		}
		for _, e := range entries {
			if _, known := names[e.Name()]; dir == ingestDir || !known {
				s.discard(filepath.Join(s.cfg.Root, dir, e.Name()))
			}
		}
	}
	for id, info := range infos {
		if info.Kind != snapshots.KindCommitted {
			continue
		}
		s.stripCommitted(id)
		if _, err := blockmount.Read(filepath.Join(s.dir(id), blockmount.LayerFile)); err != nil {
			s.log.Error("a layer is damaged; remove its image and pull it again", "name", names[id], "error", err)
		}
		if s.uses[id] == 0 {
			if err := unmountLayer(s.dir(id)); err != nil {
				s.log.Warn("unmounting a layer that nothing uses", "error", err)
			}
		}
	}
	s.sweep()
	return nil
}

// diskUsage is what is in a directory.
func diskUsage(ctx context.Context, dir string) (usage snapshots.Usage, err error) {
	seen := map[uint64]bool{}
	// Containers write and remove while this looks.
	err = walkUpper(ctx, dir, true, func(_ string, f *upperFile) error {
		if !seen[f.Stat.Ino] {
			seen[f.Stat.Ino] = true
			usage.Add(snapshots.Usage{Inodes: 1, Size: f.Stat.Blocks * 512})
		}
		return nil
	})
	if err != nil {
		return usage, fmt.Errorf("adding up what a snapshot takes: %w", err)
	}
	return usage, nil
}

// blocks is what a file takes on the disk, in bytes.
func blocks(file string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, fmt.Errorf("adding up what a layer takes: %s: %w", file, err)
	}
	return st.Blocks * 512, nil
}
