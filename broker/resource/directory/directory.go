// Package directory serves resources from files that somebody else puts into a directory, one file per resource.
//
// It never writes. Every step of a path is looked at before it is opened and compared with what was opened, so that a
// link, a pipe or a file that changes place in between is refused; the paths themselves come checked.
package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

// The layouts of Config.
const (
	// LayoutTree is DIR/repository/type/tag.
	LayoutTree = "tree"
	// LayoutLocalFS is upstream's (kbs-protocol.md section 11): DIR/repository\x2Ftype\x2Ftag, with "\x2F" written out. DIR
	// is the folder "repository" of upstream's store.
	LayoutLocalFS = "local_fs"
)

// Config says where the files are.
type Config struct {
	Dir string `toml:"dir"`
	// Layout is LayoutTree, the default, or LayoutLocalFS.
	Layout string `toml:"layout"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("dir is %.128q, want an absolute path", c.Dir))
	}
	if c.Layout != "" && c.Layout != LayoutTree && c.Layout != LayoutLocalFS {
		errs = append(errs, fmt.Errorf("layout is %.32q, want %s or %s", c.Layout, LayoutTree, LayoutLocalFS))
	}
	return errors.Join(errs...)
}

// Backend reads resources from files.
type Backend struct{ cfg Config }

// New makes a Backend.
func New(c Config) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	info, err := os.Stat(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("looking at the directory of resources: %w", err)
	}
	if err := check(info, true); err != nil {
		return nil, fmt.Errorf("the directory of resources %s %w", c.Dir, err)
	}
	return &Backend{c}, nil
}

// Put is refused.
func (b *Backend) Put(context.Context, resource.Path, []byte) error { return resource.ErrReadOnly }

// Delete is refused.
func (b *Backend) Delete(context.Context, resource.Path) error { return resource.ErrReadOnly }

// Get returns a secret, or an error that wraps store.ErrNotFound.
func (b *Backend) Get(ctx context.Context, p resource.Path) ([]byte, error) {
	secret, _, err := b.read(ctx, p)
	return secret, err
}

// GetVersion returns a secret with the time of its file. There is only version 1, which 0 means as well.
func (b *Backend) GetVersion(ctx context.Context, p resource.Path, number uint64) ([]byte, resource.Version, error) {
	if number > 1 {
		return nil, resource.Version{}, fmt.Errorf("resource %s has no version %d, files have one: %w", p, number, store.ErrNotFound)
	}
	return b.read(ctx, p)
}

// Versions tells about the one version of a resource.
func (b *Backend) Versions(ctx context.Context, p resource.Path) ([]resource.Version, error) {
	_, v, err := b.read(ctx, p)
	if err != nil {
		return nil, err
	}
	return []resource.Version{v}, nil
}

func (b *Backend) read(ctx context.Context, p resource.Path) ([]byte, resource.Version, error) {
	if err := ctx.Err(); err != nil {
		return nil, resource.Version{}, err
	}
	segments := p.Segments()
	if b.cfg.Layout == LayoutLocalFS {
		segments = []string{strings.Join(segments, `\x2F`)}
	}
	secret, v, err := readBelow(b.cfg.Dir, segments)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) {
		return nil, v, fmt.Errorf("resource %s: %w", p, store.ErrNotFound)
	}
	if err != nil {
		return nil, v, fmt.Errorf("resource %s: %w", p, err)
	}
	return secret, v, nil
}

func readBelow(dir string, segments []string) ([]byte, resource.Version, error) {
	var v resource.Version
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		// The directory was there at start: this is an outage, not a missing resource.
		return nil, v, fmt.Errorf("the directory of resources %s is gone", dir)
	}
	if err != nil {
		return nil, v, err
	}
	defer func() { root.Close() }()
	last := len(segments) - 1
	for _, name := range segments[:last] {
		next, err := descend(root, name)
		if err != nil {
			return nil, v, err
		}
		root.Close()
		root = next
	}
	seen, err := root.Lstat(segments[last])
	if err != nil {
		return nil, v, err
	}
	if err := check(seen, false); err != nil {
		return nil, v, fmt.Errorf("its file %w", err)
	}
	// Without O_NONBLOCK a pipe that takes the file's place would hang the request.
	f, err := root.OpenFile(segments[last], os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, v, err
	}
	defer f.Close()
	opened, err := f.Stat()
	if err != nil {
		return nil, v, err
	}
	if !os.SameFile(seen, opened) {
		return nil, v, errors.New("its file changed while it was opened")
	}
	secret, err := io.ReadAll(io.LimitReader(f, resource.MaxSize+1))
	if err != nil {
		return nil, v, err
	}
	if len(secret) > resource.MaxSize {
		return nil, v, fmt.Errorf("its file has more than %d bytes", resource.MaxSize)
	}
	return secret, resource.Version{Number: 1, Time: opened.ModTime().UTC(), Size: len(secret)}, nil
}

// descend opens a directory of root that is not a link.
func descend(root *os.Root, name string) (*os.Root, error) {
	seen, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if err := check(seen, true); err != nil {
		return nil, fmt.Errorf("the directory %s on its way %w", name, err)
	}
	next, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	opened, err := next.Stat(".")
	if err == nil && !os.SameFile(seen, opened) {
		err = fmt.Errorf("the directory %s on its way changed while it was opened", name)
	}
	if err != nil {
		next.Close()
		return nil, err
	}
	return next, nil
}

// check wants a plain directory or file that only its owner and group may change.
func check(info fs.FileInfo, dir bool) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return errors.New("is a symbolic link, which is not followed")
	case dir && !info.IsDir():
		return errors.New("is not a directory")
	case !dir && !info.Mode().IsRegular():
		return errors.New("is not a regular file")
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("has mode %04o: everybody could change it", info.Mode().Perm())
	}
	return nil
}
