package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer/verity"
)

// Verify reads all layers of a root and writes a line for each to out, or one that says that there are none. It returns an error if one
// is not what its root hash says, or if there is no such root. The server may run meanwhile. Of damaged layers it says which images have
// them, as far as containerd answers.
func Verify(ctx context.Context, cfg Config, out io.Writer) error {
	return verifyAll(ctx, cfg, out, func(ctx context.Context, wanted map[string]bool) (map[string][]string, error) {
		c, err := dialImages(cfg.Containerd)
		if err != nil {
			return nil, err
		}
		found, err := users(ctx, c, wanted)
		return found, errors.Join(err, c.conn.Close())
	})
}

// verifyAll is Verify with how to find the images that have layers, by their diff IDs.
func verifyAll(ctx context.Context, cfg Config, out io.Writer, find func(context.Context, map[string]bool) (map[string][]string, error)) error {
	if _, err := os.Stat(cfg.Root); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("verifying layers: %w\nhint: no snapshotter has kept anything there; --root or the configuration (--file) says where its directory is", err)
	}
	if err := checkRoot(cfg.Root); err != nil {
		return fmt.Errorf("verifying layers: %w", err)
	}
	dirs, err := os.ReadDir(filepath.Join(cfg.Root, layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		dirs, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("verifying layers: %w", err)
	}
	p := &printer{w: out}
	if len(dirs) == 0 {
		p.line("no layers in %s", cfg.Root)
		return p.err
	}
	bad := map[string]bool{} // diff IDs
	var damaged []string     // names of layers
	for _, d := range dirs {
		dir := filepath.Join(cfg.Root, layersDir, d.Name())
		l, err := verifyLayer(ctx, dir)
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("verifying layers: %w", cause)
		}
		if _, gone := os.Lstat(dir); errors.Is(gone, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			damaged = append(damaged, d.Name())
			bad[diffIDOf(d.Name())] = true
			p.line("bad  %s: %v", d.Name(), err)
			continue
		}
		p.line("good %s %s", l.Root, l.DiffID)
	}
	if len(damaged) == 0 || p.err != nil {
		return p.err
	}
	images, err := find(ctx, bad)
	for _, name := range damaged {
		if err != nil {
			break
		}
		list := images[diffIDOf(name)]
		if len(list) == 0 {
			p.line("%s is in no image that containerd has", name)
		}
		for _, image := range list {
			p.line("%s is in %s", name, image)
		}
	}
	what := fmt.Errorf("%d of %d layers are damaged", len(damaged), len(dirs))
	if err != nil {
		what = fmt.Errorf("%w, and the images that have them are not known: %w", what, err)
	}
	return errors.Join(p.err, fmt.Errorf("%w\nhint: remove the images that have them, from all namespaces, and pull them again", what))
}

// printer keeps the first error of what it writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err != nil {
		return
	}
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); err != nil {
		p.err = fmt.Errorf("verifying layers: %w", err)
	}
}

// layerForm is the name of a layer's directory: how it was made, the diff ID, and the blob where that matters.
var layerForm = regexp.MustCompile(`-([0-9a-f]{64})(-[0-9a-f]{64})?$`)

// diffIDOf is the diff ID in a layer's name, which is there whatever has become of the files.
func diffIDOf(name string) string {
	if m := layerForm.FindStringSubmatch(name); m != nil {
		return "sha256:" + m[1]
	}
	return ""
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
