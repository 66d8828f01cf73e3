package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/cloister/cloister/host/blockmount"
)

// Commit makes a layer of an active snapshot. For a layer of an image it is made of the blob in the content store, whatever
// containerd unpacked meanwhile; for another snapshot of what was written.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var given snapshots.Info
	for _, opt := range opts {
		if err := opt(&given); err != nil {
			return err
		}
	}
	var id string
	var info snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return fmt.Errorf("snapshot %s: %w", name, errdefs.ErrAlreadyExists)
		}
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	if info.Kind != snapshots.KindActive {
		return fmt.Errorf("snapshot %s is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	parent := info.Parent
	if parent == "" {
		parent = given.Parent
	}
	start := time.Now()
	ctx = withNamespace(ctx, name)
	var l stored
	from := "what was written"
	if chain := chainOfKey(key); chain != "" {
		l, from, err = s.imageLayer(ctx, id, chain, name, parent, info.Labels)
	} else {
		l, err = s.writtenLayer(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("making the block layer of snapshot %s: %w", name, err)
	}
	if err := s.finish(ctx, name, key, id, l, opts); err != nil {
		return err
	}
	s.log.Info("layer", "name", name, "root", l.Root, "bytes", l.Size, "from", from, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// finish gives a layer to an active snapshot, unpins it and commits the snapshot.
func (s *Snapshotter) finish(ctx context.Context, name, key, id string, l stored, opts []snapshots.Opt) error {
	defer s.unpin(l)
	if err := s.link(l, id); err != nil {
		return fmt.Errorf("keeping the block layer of snapshot %s: %w", name, err)
	}
	usage, err := layerUsage(s.dir(id))
	if err != nil {
		return err
	}
	opts = opts[:len(opts):len(opts)]
	if chainOfKey(key) != "" {
		opts = append(opts, snapshots.WithLabels(map[string]string{labelRoot: l.Root, labelDiffID: l.DiffID, labelRecipe: s.cfg.Recipe}))
	}
	if err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, usage, opts...)
		return err
	}); err != nil {
		return err
	}
	s.release(key)
	s.stripCommitted(id)
	return nil
}

// imageLayer is the layer of an image that a snapshot waits for, pinned, and where it came from.
func (s *Snapshotter) imageLayer(ctx context.Context, id, chain, name, parent string, labels map[string]string) (_ stored, from string, err error) {
	if plain(name) != chain {
		return stored{}, "", fmt.Errorf("the snapshot was prepared for %s: %w", chain, errdefs.ErrInvalidArgument)
	}
	below, err := parentChain(parent)
	if err != nil {
		return stored{}, "", err
	}
	from = "the differ"
	l, err := s.linked(id)
	if errors.Is(err, os.ErrNotExist) {
		var src source
		from = "the blob"
		s.differs.Store(false)
		if src, err = s.locate(ctx, chain, below, labels); err == nil {
			s.convertAhead(ctx, src)
			l, err = s.convertBlob(ctx, src)
		}
	}
	if err != nil {
		return stored{}, "", err
	}
	if got := chainID(below, l.DiffID); got != chain {
		s.unpin(l)
		return stored{}, "", fmt.Errorf("the layer's uncompressed digest is %s, which gives the chain ID %s, want %s: %w", l.DiffID, got, chain, errdefs.ErrFailedPrecondition)
	}
	return l, from, nil
}

// containerdName is how containerd names a snapshot: its namespace, a number, and the name that its client gave.
var containerdName = regexp.MustCompile(`^([^/]+)/[0-9]+/`)

// withNamespace gives a context the namespace of a snapshot's name if it has none: containerd 1.6 does not tell.
func withNamespace(ctx context.Context, name string) context.Context {
	if _, told := namespaces.Namespace(ctx); told {
		return ctx
	}
	if m := containerdName.FindStringSubmatch(name); m != nil {
		return namespaces.WithNamespace(ctx, m[1])
	}
	return ctx
}

// writtenLayer is what was written into a snapshot. It is pinned.
func (s *Snapshotter) writtenLayer(ctx context.Context, id string) (stored, error) {
	dir := filepath.Join(s.dir(id), upperDir)
	return s.convert(ctx, "", func(ctx context.Context) (tarStream, error) { return tarOf(ctx, dir), nil })
}

// digestForm is that of all digests here; containerd's chain IDs know no other algorithm.
var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parentChain is the chain ID of a parent's name.
func parentChain(parent string) (string, error) {
	if parent == "" {
		return "", nil
	}
	if chain := plain(parent); digestForm.MatchString(chain) {
		return chain, nil
	}
	return "", fmt.Errorf("a layer of an image on top of %q, want a chain ID: %w", parent, errdefs.ErrInvalidArgument)
}

// chainID is the chain ID of a layer on top of a chain.
func chainID(below, diffID string) string {
	if below == "" {
		return diffID
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(below+" "+diffID)))
}

// stripCommitted removes what only an active snapshot needs. What cannot be removed is tried again at the next start.
func (s *Snapshotter) stripCommitted(id string) {
	for _, name := range []string{upperDir, workDir, extraction} {
		if err := os.RemoveAll(filepath.Join(s.dir(id), name)); err != nil {
			s.log.Warn("removing what was unpacked", "error", err)
		}
	}
}

// layerUsage is what a committed snapshot takes.
func layerUsage(dir string) (usage snapshots.Usage, err error) {
	for _, name := range []string{blockmount.LayerFile, blockmount.SidecarFile} {
		size, err := blocks(filepath.Join(dir, name))
		if err != nil {
			return usage, err
		}
		usage.Add(snapshots.Usage{Inodes: 1, Size: size})
	}
	return usage, nil
}
