package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer/verity"
)

// Verify reads all layers of a root and writes a line for each to out, or one that says that there are none. It returns an error if one
// is not what its root hash says, or if there is no such root. The server may run meanwhile.
func Verify(ctx context.Context, cfg Config, out io.Writer) error {
	if _, err := os.Stat(cfg.Root); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("verifying layers: %w\nhint: no snapshotter has kept anything there; --root or the configuration (--file) says where its directory is", err)
	}
	dirs, err := os.ReadDir(filepath.Join(cfg.Root, layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		dirs, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("verifying layers: %w", err)
	}
	if len(dirs) == 0 {
		if _, err := fmt.Fprintf(out, "no layers in %s\n", cfg.Root); err != nil {
			return fmt.Errorf("verifying layers: %w", err)
		}
		return nil
	}
	bad := 0
	for _, d := range dirs {
		dir := filepath.Join(cfg.Root, layersDir, d.Name())
		l, err := verifyLayer(ctx, dir)
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("verifying layers: %w", cause)
		}
		if _, gone := os.Lstat(dir); errors.Is(gone, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		line := fmt.Sprintf("good %s %s", l.Root, l.DiffID)
		if err != nil {
			bad++
			line = fmt.Sprintf("bad  %s: %v", d.Name(), err)
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return fmt.Errorf("verifying layers: %w", err)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d layers are damaged\nhint: remove the images that have them, from all namespaces, and pull them again", bad, len(dirs))
	}
	return nil
}

func verifyLayer(ctx context.Context, dir string) (stored, error) {
	l, err := read(dir)
	if err != nil {
		return l, err
	}
	root, err := verity.ParseRoot(l.Root)
	if err != nil {
		return l, err
	}
	f, err := os.Open(filepath.Join(dir, blockmount.LayerFile))
	if err != nil {
		return l, err
	}
	defer f.Close()
	_, err = verity.Check(ctx, f, l.HashOffset, root, 0)
	return l, err
}
