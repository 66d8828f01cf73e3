package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/cloister/cloister/layer/erofs"
	"github.com/cloister/cloister/layer/ext4"
	"github.com/cloister/cloister/layer/internal/limit"
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
	var files func(context.Context, io.Reader, sink, Options) (int64, error)
	switch o.Recipe {
	case "", Cloister:
		files = cloisterFiles
	case Containerd:
		files = containerdFiles
	case HCSShim:
		files = hcsshimFiles
	default:
		return Result{}, fmt.Errorf("building a layer: unknown recipe %q\nhint: recipes are %s, %s and %s", o.Recipe, Cloister, Containerd, HCSShim)
	}
	result, err := build(ctx, tar, out, o, files)
	var tooLarge *LimitError
	if errors.As(err, &tooLarge) {
		return Result{}, fmt.Errorf("building a layer: %w\nhint: docs/reference/layers.md lists the limits of layers", err)
	}
	if err != nil {
		return Result{}, fmt.Errorf("building a layer: %w", err)
	}
	return result, nil
}

// LimitError says which limit a layer exceeds.
type LimitError = limit.Error

// sink takes the blocks of a file system.
type sink = erofs.Sink

// build puts files, which makes a file system and returns its size in blocks, between the stream and what hashes and writes.
func build(ctx context.Context, tar io.Reader, out io.WriterAt, o Options, files func(context.Context, io.Reader, sink, Options) (int64, error)) (Result, error) {
	source := newSource(ctx, tar)
	defer source.stop()
	b, err := newBlocks(out, o.Workers)
	if err != nil {
		return Result{}, err
	}
	count, err := files(ctx, source, b, o)
	if werr := b.wait(); err == nil || errors.Is(err, errWorker) {
		err = werr
	}
	if err != nil {
		return Result{}, err
	}
	result, err := b.finish(count)
	if err != nil {
		return Result{}, err
	}
	result.DiffID, err = source.rest()
	return result, err
}

func cloisterFiles(ctx context.Context, tar io.Reader, s sink, o Options) (int64, error) {
	return erofs.FromTar(ctx, tar, s, erofs.Options{MaxSize: o.MaxSize})
}

func containerdFiles(ctx context.Context, tar io.Reader, s sink, o Options) (int64, error) {
	dir, err := os.MkdirTemp(o.TempDir, "cloister-layer-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	path, err := mkfs(ctx, tar, dir, o)
	if err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() > o.MaxSize {
		return 0, &LimitError{What: "size of the layer's file system", Limit: o.MaxSize}
	}
	return fromFile(ctx, f, st.Size(), s)
}

func hcsshimFiles(ctx context.Context, tar io.Reader, s sink, o Options) (int64, error) {
	f, err := os.CreateTemp(o.TempDir, "cloister-layer-")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return 0, err
	}
	size, err := ext4.FromTar(ctx, tar, f, o.MaxSize)
	if err != nil {
		return 0, err
	}
	return fromFile(ctx, f, size, s)
}

// fromFile hands over the blocks of a file, the last one filled up with zeros.
func fromFile(ctx context.Context, f io.ReaderAt, size int64, s sink) (int64, error) {
	for at := int64(0); at < size; at += erofs.BufferSize {
		buf, err := s.Buffer(ctx)
		if err != nil {
			return 0, err
		}
		n := min(size-at, erofs.BufferSize)
		buf = buf[:(n+erofs.BlockSize-1)/erofs.BlockSize*erofs.BlockSize]
		if got, err := f.ReadAt(buf[:n], at); int64(got) < n {
			return 0, fmt.Errorf("reading the file system back: %w", err)
		}
		clear(buf[n:])
		if err := s.Blocks(ctx, at/erofs.BlockSize, buf); err != nil {
			return 0, err
		}
	}
	return (size + erofs.BlockSize - 1) / erofs.BlockSize, nil
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
