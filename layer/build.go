package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/cloister/cloister/layer/erofs"
	"github.com/cloister/cloister/layer/verity"
)

// Recipe names a way to make a block layer of a tar stream. The same recipe, stream and descriptor give the same root hash.
type Recipe string

const (
	// Cloister is this project's own: EROFS as layer/erofs writes it. It is the default.
	Cloister Recipe = "cloister-erofs-1"
	// Containerd runs mkfs.erofs as containerd's EROFS differ does. The result depends on the version of erofs-utils.
	Containerd Recipe = "containerd-erofs"
	// HCSShim is the compact ext4 of Microsoft's hcsshim (tar2ext4), as Azure Container Instances use it.
	HCSShim Recipe = "hcsshim-ext4"
)

// DefaultMaxSize is the limit of a layer's size in bytes if Options have none.
const DefaultMaxSize = 16 << 30

// Options say how to build. The zero value is good for the default recipe.
type Options struct {
	Recipe     Recipe // "" is Cloister
	Descriptor string // digest of the compressed blob, "sha256:…"; Containerd needs it, since its file system's UUID is made of it
	MaxSize    int64  // of the file system in bytes; 0 is DefaultMaxSize
	TempDir    string // for recipes that need a file; "" is the system's
	Workers    int    // that hash and write; 0 is GOMAXPROCS
}

// Result describes what was built.
type Result struct {
	Root       string // verity root hash, 64 hexadecimal characters
	HashOffset int64  // bytes of data rounded up to a block; the superblock is there, the tree after it
	Size       int64  // of the whole file in bytes
	DiffID     string // digest of the tar stream, "sha256:…"
}

// Build reads a decompressed layer once, as a stream, up to its end, and writes file system, verity superblock and tree to out,
// which must be empty. With a nil out nothing is written and the Result is all there is. If an error is returned, what was written
// is useless.
func Build(ctx context.Context, tar io.Reader, out io.WriterAt, o Options) (Result, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	switch o.Recipe {
	case "", Cloister:
		return buildCloister(ctx, tar, out, o)
	}
	return Result{}, fmt.Errorf("building a layer: unknown recipe %q\nhint: recipes are %s, %s and %s", o.Recipe, Cloister, Containerd, HCSShim)
}

func buildCloister(ctx context.Context, tar io.Reader, out io.WriterAt, o Options) (Result, error) {
	source := newSource(ctx, tar)
	defer source.stop()
	b, err := newBlocks(out, o.Workers)
	if err != nil {
		return Result{}, err
	}
	count, err := erofs.FromTar(ctx, source, b, erofs.Options{MaxSize: o.MaxSize})
	if werr := b.wait(); err == nil || errors.Is(err, errWorker) {
		err = werr
	}
	if err != nil {
		return Result{}, fmt.Errorf("building a layer: %w", err)
	}
	result, err := b.finish(count)
	if err != nil {
		return Result{}, fmt.Errorf("building a layer: %w", err)
	}
	if result.DiffID, err = source.rest(); err != nil {
		return Result{}, fmt.Errorf("building a layer: %w", err)
	}
	return result, nil
}

// finish writes superblock and tree behind so many blocks of data.
func (b *blocks) finish(count int64) (Result, error) {
	root, err := b.tree.Finish(count)
	if err != nil {
		return Result{}, err
	}
	p := verity.Default()
	r := Result{Root: root.String(), HashOffset: count * int64(p.DataBlock)}
	tree := r.HashOffset + int64(p.HashBlock)
	r.Size = tree + p.TreeSize(count)
	if b.out == nil {
		return r, nil
	}
	super, err := verity.NewSuperblock(p, count, root).Marshal()
	if err != nil {
		return Result{}, err
	}
	if _, err := b.out.WriteAt(super, r.HashOffset); err != nil {
		return Result{}, fmt.Errorf("writing the verity superblock: %w", err)
	}
	_, err = b.tree.WriteAt(b.out, tree)
	return r, err
}
