package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Prepare makes a snapshot to be written to.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a snapshot to be read.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// extractionKey is how containerd's unpacker names the snapshot into which a layer goes; the digest is the chain ID that the
// snapshot is going to have. containerd puts NAMESPACE/NUMBER/ in front of all names.
var extractionKey = regexp.MustCompile(`^extract-[^ /]+ (sha256:[0-9a-f]{64})$`)

// chainOfKey is the chain ID for which a key was made, "" when the key is not the unpacker's.
func chainOfKey(key string) string {
	if m := extractionKey.FindStringSubmatch(plain(key)); m != nil {
		return m[1]
	}
	return ""
}

// plain is a name without what containerd puts in front of it.
func plain(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Root, snapshotsDir), newPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a snapshot's directory: %w", err)
	}
	made := tmp
	defer func() {
		if err != nil && !errdefs.IsAlreadyExists(err) || made == tmp {
			s.discard(made)
		}
	}()
	chain := ""
	if kind == snapshots.KindActive {
		chain = chainOfKey(key)
	}
	if err := fillDirectory(tmp, kind, chain); err != nil {
		return nil, err
	}
	var snap storage.Snapshot
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		path := s.dir(snap.ID)
		s.discard(path) // a snapshot that was never recorded had this number
		if err := os.Rename(tmp, path); err != nil {
			return fmt.Errorf("naming a snapshot's directory: %w", err)
		}
		made = path
		return nil
	})
	if err != nil {
		return nil, err
	}
	if chain != "" {
		done, err := s.commitEarly(ctx, key, parent, chain, snap.ID, opts)
		if err != nil {
			s.log.Warn("a layer that is there already cannot be used", "error", err)
		} else if done {
			return nil, fmt.Errorf("layer %s: %w", chain, errdefs.ErrAlreadyExists)
		}
	}
	mounts, err := s.mounts(key, snap)
	if err == nil && kind == snapshots.KindActive && chain == "" && len(snap.ParentIDs) > 0 && s.cfg.Mounts == MountsOverlay {
		err = likeRoot(filepath.Join(made, upperDir), filepath.Join(s.dir(snap.ParentIDs[0]), blockmountPoint))
	}
	if err != nil {
		undo := context.WithoutCancel(ctx)
		if rerr := s.ms.WithTransaction(undo, true, func(ctx context.Context) error {
			_, _, err := storage.Remove(ctx, key)
			return err
		}); rerr != nil {
			made = "" // it is recorded, so it stays whole
			s.log.Error("taking back a snapshot that cannot be mounted", "key", key, "error", rerr)
		}
		s.release(key)
		return nil, err
	}
	return mounts, nil
}

// commitEarly spares containerd to download and unpack a layer, by committing its snapshot while it is prepared: containerd, told that
// it exists, takes it by its label. That is possible if the layer has been made, as those of an image are while the first is unpacked.
// If containerd does not let us apply layers but unpacks them for nothing, then also if the blob is there and only has to be converted.
func (s *Snapshotter) commitEarly(ctx context.Context, key, parent, chain, id string, opts []snapshots.Opt) (bool, error) {
	var given snapshots.Info
	for _, opt := range opts {
		if err := opt(&given); err != nil {
			return false, err
		}
	}
	if given.Labels[labelRef] != chain {
		return false, nil
	}
	ctx = withNamespace(ctx, key)
	src, err := s.search(ctx, chain)
	if errdefs.IsNotFound(err) {
		return false, nil // it has to be downloaded
	}
	if err != nil || src.unreadable {
		return false, err
	}
	if below, err := parentChain(parent); err != nil || below != src.Below {
		return false, err // the parent comes with the commit
	}
	s.convertAhead(ctx, src)
	l, ok := s.have(s.layerName(src.DiffID, src.Blob))
	if !ok && s.differs.Load() {
		return false, nil
	}
	if !ok {
		if l, err = s.convertBlob(ctx, src); err != nil {
			return false, err
		}
	}
	if l.DiffID != src.DiffID {
		s.unpin(l)
		return false, fmt.Errorf("the tar in blob %s is %s, its image says %s", src.Blob, l.DiffID, src.DiffID)
	}
	name := strings.TrimSuffix(key, plain(key)) + chain
	if err := s.finish(ctx, name, key, id, l, opts); err != nil {
		return false, err
	}
	s.log.Info("layer", "name", name, "root", l.Root, "bytes", l.Size, "from", "layers that are there")
	return true, nil
}

// fillDirectory makes what is in the directory of a new snapshot. The chain ID is that of the layer it waits for, if it does.
func fillDirectory(dir string, kind snapshots.Kind, chain string) error {
	names := []string{upperDir}
	if kind == snapshots.KindActive {
		names = append(names, workDir)
	}
	for _, name := range names {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("making a snapshot's directory: %w", err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil { // whatever the umask is
			return fmt.Errorf("making a snapshot's directory: %w", err)
		}
	}
	if chain != "" {
		if err := os.WriteFile(filepath.Join(dir, extraction), []byte(chain), 0o600); err != nil {
			return fmt.Errorf("making a snapshot's directory: %w", err)
		}
	}
	return nil
}

// likeRoot gives the directory that is going to be a container's / the owner and permissions of the image's.
func likeRoot(upper, root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return fmt.Errorf("looking at an image's root: %s: %w", root, err)
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("making a container's root: %w", err)
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return fmt.Errorf("making a container's root: %s: %w", upper, err)
	}
	return nil
}
