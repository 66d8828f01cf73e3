package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/layer"
)

// diffIDFile has the digest of the tar that a layer was made of, or sealed.DiffID of a sealed one.
const diffIDFile = "layer.diffid"

// stored is a layer that is on the disk, whole.
type stored struct {
	Name       string // of its directory below layers/; empty for one that a snapshot has already
	Root       string
	HashOffset int64
	Size       int64
	DiffID     string
}

// recipe is that of a layer. What was written on this node has no blob, which the other recipe needs.
func (s *Snapshotter) recipe(blob string) string {
	if blob == "" {
		return RecipeCloister
	}
	return s.cfg.Recipe
}

// layerName names a layer by what its bytes depend on.
func (s *Snapshotter) layerName(diffID, blob string) string {
	name := s.recipe(blob) + "-" + strings.TrimPrefix(diffID, "sha256:")
	if s.recipe(blob) == RecipeContainerd { // the file system's UUID is made of the blob's digest
		name += "-" + strings.TrimPrefix(blob, "sha256:")
	}
	return name
}

// read reads a directory with a layer.
func read(dir string) (stored, error) {
	l, err := blockmount.Read(filepath.Join(dir, blockmount.LayerFile))
	if err != nil {
		return stored{}, err
	}
	info, err := os.Stat(l.File)
	if err != nil {
		return stored{}, fmt.Errorf("reading a layer: %w", err)
	}
	f, err := os.Open(filepath.Join(dir, diffIDFile))
	if err != nil {
		return stored{}, fmt.Errorf("reading a layer: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return stored{}, fmt.Errorf("reading a layer: %w", err)
	}
	if !digestForm.MatchString(string(raw)) {
		return stored{}, fmt.Errorf("reading a layer: %s has %q, want a digest", f.Name(), raw)
	}
	return stored{Root: l.Root, HashOffset: l.HashOffset, Size: info.Size(), DiffID: string(raw)}, nil
}

// linked is the layer that a snapshot's directory has already.
func (s *Snapshotter) linked(id string) (stored, error) { return read(s.dir(id)) }

// have looks for a layer in the store and pins it. One that cannot be read is made anew.
func (s *Snapshotter) have(name string) (stored, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := filepath.Join(s.cfg.Root, layersDir, name)
	l, err := read(dir)
	if err != nil {
		if _, gone := os.Lstat(dir); !errors.Is(gone, os.ErrNotExist) { // the directory is there, and something of it may be missing
			s.log.Warn("a layer is made anew", "error", err)
			s.takeAway(dir)
		}
		return stored{}, false
	}
	l.Name = name
	s.pins[name]++
	return l, true
}

// takeAway moves a directory out of the way, to where the next start removes it. The caller holds mu.
func (s *Snapshotter) takeAway(dir string) string {
	away, err := os.MkdirTemp(filepath.Join(s.cfg.Root, ingestDir), "rm-")
	if err == nil {
		err = os.Rename(dir, filepath.Join(away, "layer"))
	}
	if err != nil {
		s.log.Warn("removing a layer", "error", err)
		return ""
	}
	return away
}

// ingest makes a layer and puts it into the store, pinned. What is on the disk before the rename at its end is nobody's.
func (s *Snapshotter) ingest(ctx context.Context, blob string, tar io.Reader) (stored, error) {
	return s.keep(func(f *os.File, tmp string) (made, error) {
		r, err := s.build(ctx, tar, f, layer.Options{
			Recipe: layer.Recipe(s.recipe(blob)), Descriptor: blob, MaxSize: s.cfg.MaxLayerGiB << 30, TempDir: tmp,
		})
		return made{blockmount.Layer{Root: r.Root, HashOffset: r.HashOffset}, r.DiffID, s.layerName(r.DiffID, blob)}, err
	})
}

// made is what a layer's file was made to be, with the name that the layer gets.
type made struct {
	layer        blockmount.Layer
	diffID, name string
}

// keep puts a layer into the store whose file fill makes. It is pinned.
func (s *Snapshotter) keep(fill func(f *os.File, tmp string) (made, error)) (_ stored, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(s.cfg.Root, ingestDir), newPrefix)
	if err != nil {
		return stored{}, fmt.Errorf("making a layer: %w", err)
	}
	defer func() {
		if rerr := os.RemoveAll(tmp); rerr != nil { // it has been renamed if all went well
			s.log.Warn("removing a layer that could not be made", "error", rerr)
		}
	}()
	dir := filepath.Join(tmp, "layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return stored{}, fmt.Errorf("making a layer: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, blockmount.LayerFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return stored{}, fmt.Errorf("making a layer: %w", err)
	}
	defer f.Close()
	result, err := fill(f, tmp)
	if err != nil {
		return stored{}, hintFull(err, s.cfg.Root)
	}
	if err := f.Sync(); err != nil {
		return stored{}, hintFull(fmt.Errorf("writing a layer: %w", err), s.cfg.Root)
	}
	text, err := result.layer.Sidecar()
	if err != nil {
		return stored{}, fmt.Errorf("making a layer: %w", err)
	}
	for name, data := range map[string][]byte{blockmount.SidecarFile: text, diffIDFile: []byte(result.diffID)} {
		if err := paths.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return stored{}, hintFull(fmt.Errorf("writing a layer: %w", err), s.cfg.Root)
		}
	}
	l, err := read(dir)
	if err != nil {
		return stored{}, err
	}
	l.Name = result.name
	s.mu.Lock()
	defer s.mu.Unlock()
	final := filepath.Join(s.cfg.Root, layersDir, l.Name)
	if was, err := read(final); err != nil || was.Root != l.Root || was.HashOffset != l.HashOffset || was.Size != l.Size {
		if _, gone := os.Lstat(final); !errors.Is(gone, os.ErrNotExist) {
			s.log.Warn("a layer that is damaged is replaced", "layer", l.Name, "error", err)
			s.takeAway(final)
		}
	}
	if err := os.Rename(dir, final); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) { // another blob of the same tar
		return stored{}, fmt.Errorf("keeping a layer: %w", err)
	}
	if err := syncDir(filepath.Dir(final)); err != nil {
		return stored{}, err
	}
	s.pins[l.Name]++
	return l, nil
}

func hintFull(err error, root string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w\nhint: the disk of %s is full; `crictl rmi --prune` removes images that no container uses", err, root)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing a directory to the disk: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing the directory %s to the disk: %w", dir, err)
	}
	return nil
}

// unpin lets go of a layer, which stays if a snapshot has a link to it.
func (s *Snapshotter) unpin(l stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[l.Name]--; s.pins[l.Name] <= 0 {
		delete(s.pins, l.Name)
	}
}

// link gives a pinned layer to a snapshot.
func (s *Snapshotter) link(l stored, id string) error {
	if l.Name == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.dir(id)
	if err := os.Mkdir(filepath.Join(dir, blockmount.MountPoint), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("linking a layer: %w", err)
	}
	for _, name := range []string{diffIDFile, blockmount.SidecarFile, blockmount.LayerFile} { // where the last is, all are
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("linking a layer: %w", err)
		}
		if err := os.Link(filepath.Join(s.cfg.Root, layersDir, l.Name, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("linking a layer: %w", err)
		}
	}
	delete(s.ahead, l.Name)
	if err := syncDir(dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// sweep removes the layers that no snapshot has a link to.
func (s *Snapshotter) sweep() {
	root := filepath.Join(s.cfg.Root, layersDir)
	s.mu.Lock()
	entries, err := os.ReadDir(root)
	if err != nil {
		s.log.Warn("looking for layers that nothing uses", "error", err)
	}
	var away []string
	for _, e := range entries {
		var st unix.Stat_t
		dir := filepath.Join(root, e.Name())
		err := unix.Lstat(filepath.Join(dir, blockmount.LayerFile), &st)
		if s.pins[e.Name()] > 0 || s.ahead[e.Name()] || err == nil && st.Nlink > 1 {
			continue
		}
		if moved := s.takeAway(dir); moved != "" {
			away = append(away, moved)
		}
	}
	s.mu.Unlock()
	for _, dir := range away {
		s.discard(dir)
	}
}
