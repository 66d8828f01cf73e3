package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/internal/paths"
)

// Names in the root and in a snapshot's directory.
const (
	metadataFile = "metadata.db"
	lockFile     = "lock"
	snapshotsDir = "snapshots"
	layersDir    = "layers"
	ingestDir    = "ingest"
	upperDir     = "fs"
	workDir      = "work"
	extraction   = "extraction" // an active snapshot with this file waits for a layer of an image
	newPrefix    = "new-"
)

// Labels that the snapshot of an image's layer gets, for who looks at it. Nothing depends on them.
const (
	labelPrefix = "cloister.dev/layer."
	labelRoot   = labelPrefix + "root-hash"
	labelDiffID = labelPrefix + "diff-id"
	labelRecipe = labelPrefix + "recipe"
)

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	cfg     Config
	log     *slog.Logger
	content contentStore
	build   buildFunc
	ms      *storage.MetaStore
	lock    *paths.Lock
	slots   chan struct{} // one for each conversion under way
	overlay []string      // options of overlays
	finder  finder
	differs atomic.Bool // containerd lets us apply layers, as far as is known

	life  context.Context // ends with Close; conversions that run ahead stop then
	end   context.CancelFunc
	conn  io.Closer // to containerd; nil in tests
	work  sync.WaitGroup
	close sync.Once

	mu      sync.Mutex // what is below, links to layers, and host mounts
	active  map[string][]string
	uses    map[string]int // active snapshots above a layer's snapshot, by its id
	running map[string]*conversion
	pins    map[string]int // layers that are kept although no snapshot has a link yet
	ahead   map[string]bool
	left    map[string]bool // directories whose removal failed
}

// New opens or makes a root. It removes what a crash left.
func New(ctx context.Context, cfg Config, log *slog.Logger, content contentStore, build buildFunc) (_ *Snapshotter, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuring the snapshotter: %w", err)
	}
	if err := checkRoot(cfg.Root); err != nil {
		return nil, err
	}
	s := &Snapshotter{
		cfg: cfg, log: log, content: content, build: build, slots: make(chan struct{}, cfg.conversions()), overlay: overlayOptions(),
		active: map[string][]string{}, uses: map[string]int{}, running: map[string]*conversion{}, pins: map[string]int{},
		ahead: map[string]bool{}, left: map[string]bool{},
	}
	s.differs.Store(true)
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	for _, dir := range []string{"", snapshotsDir, layersDir, ingestDir} {
		if err := os.MkdirAll(filepath.Join(cfg.Root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("making the snapshotter's root: %w", err)
		}
	}
	// Programs of images that run as another user are not for the node's users.
	if err := os.Chmod(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("making the snapshotter's root: %w", err)
	}
	if s.lock, err = paths.TryLock(filepath.Join(cfg.Root, lockFile)); err != nil {
		return nil, fmt.Errorf("locking the snapshotter's root: %w\nhint: another cloister-snapshotter works on %s", err, cfg.Root)
	}
	defer func() {
		if err != nil {
			s.lock.Unlock()
		}
	}()
	if s.ms, err = storage.NewMetaStore(filepath.Join(cfg.Root, metadataFile)); err != nil {
		return nil, fmt.Errorf("opening the snapshotter's metadata: %w", err)
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.ms.Close())
	}
	return s, nil
}

// Close ends conversions and gives the root free. Layers stay mounted: a container may be about to start on them.
func (s *Snapshotter) Close() (err error) {
	s.close.Do(func() {
		s.end()
		s.work.Wait()
		err = s.ms.Close()
		if s.conn != nil {
			err = errors.Join(err, s.conn.Close())
		}
		s.lock.Unlock()
	})
	return err
}

func (s *Snapshotter) dir(id string) string { return filepath.Join(s.cfg.Root, snapshotsDir, id) }

// Stat describes a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels. Those that this package made stay.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fields ...string) (_ snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, now, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		labels := maps.Clone(info.Labels)
		for _, name := range []string{labelRoot, labelDiffID, labelRecipe} {
			if value, there := now.Labels[name]; there {
				if labels == nil {
					labels = map[string]string{}
				}
				labels[name] = value
			}
		}
		info.Labels = labels
		info, err = storage.UpdateInfo(ctx, info, fields...)
		return err
	})
	return info, err
}

// Walk calls fn for each snapshot that the filters let through.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		err := storage.WalkInfo(ctx, fn, filters...)
		if errdefs.IsNotFound(err) {
			return nil // there was never a snapshot
		}
		return err
	})
}

// Usage is what a snapshot takes on the disk. Layers that several snapshots share are counted for each.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || info.Kind != snapshots.KindActive {
		return usage, err
	}
	return diskUsage(ctx, filepath.Join(s.dir(id), upperDir))
}

// Mounts are those of an active snapshot or a view. The layers below are mounted on the host if they are not.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snap storage.Snapshot
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		snap, err = storage.GetSnapshot(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.mounts(key, snap)
}

func (s *Snapshotter) mounts(key string, snap storage.Snapshot) ([]mount.Mount, error) {
	dir := s.dir(snap.ID)
	_, err := os.Lstat(filepath.Join(dir, extraction))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking at a snapshot: %w", err)
	}
	if err == nil || len(snap.ParentIDs) == 0 {
		mode := "rw"
		if snap.Kind == snapshots.KindView {
			mode = "ro"
		}
		return []mount.Mount{{Type: "bind", Source: filepath.Join(dir, upperDir), Options: []string{mode, "rbind"}}}, nil
	}
	root := blockmount.Root{Options: s.overlay}
	for _, id := range snap.ParentIDs {
		root.Layers = append(root.Layers, s.dir(id))
	}
	if snap.Kind == snapshots.KindActive {
		root.Upper, root.Work = filepath.Join(dir, upperDir), filepath.Join(dir, workDir)
	}
	if s.cfg.Mounts == MountsEROFS {
		list, err := root.EROFS()
		if err != nil {
			return nil, fmt.Errorf("%w\nhint: remove the image and pull it again", err)
		}
		return toMounts(list), nil
	}
	if err := s.need(key, snap.ParentIDs); err != nil {
		return nil, err
	}
	return toMounts(root.Overlay()), nil
}

func toMounts(list []blockmount.Mount) []mount.Mount {
	mounts := make([]mount.Mount, len(list))
	for i, m := range list {
		mounts[i] = mount.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	return mounts
}
