package verity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

const readSize = 128 << 10 // bytes that one worker reads and hashes at a time: they stay in its cache

// Hash makes the tree over size bytes of data, the last block filled up with zeros, with so many workers (0: GOMAXPROCS).
func Hash(ctx context.Context, p Params, data io.ReaderAt, size int64, workers int) (*Tree, Root, error) {
	t, err := NewTree(p)
	if err != nil {
		return nil, Root{}, err
	}
	if size <= 0 || size > maxBlocks*int64(p.DataBlock) {
		return nil, Root{}, fmt.Errorf("verity tree over %d bytes", size)
	}
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu   sync.Mutex
		next int64
		wait sync.WaitGroup
	)
	take := func() int64 {
		mu.Lock()
		defer mu.Unlock()
		at := next
		next += readSize
		return at
	}
	for range workers {
		wait.Go(func() {
			buf := make([]byte, readSize)
			for at := take(); at < size && ctx.Err() == nil; at = take() {
				n := min(size-at, readSize)
				if got, err := data.ReadAt(buf[:n], at); int64(got) < n {
					cancel(fmt.Errorf("reading data at %d: %w", at, noEOF(err)))
					return
				}
				whole := (n + int64(p.DataBlock) - 1) / int64(p.DataBlock) * int64(p.DataBlock)
				clear(buf[n:whole])
				if err := t.Add(at/int64(p.DataBlock), buf[:whole]); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, Root{}, err
	}
	root, err := t.Finish((size + int64(p.DataBlock) - 1) / int64(p.DataBlock))
	return t, root, err
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ErrCorrupt says that data or tree do not belong to the root hash.
var ErrCorrupt = errors.New("data does not match the verity root hash")

// Check reads data, and the superblock and tree at hashOffset behind it, and reports whether all of it belongs to the root hash.
// It reads everything: the kernel checks blocks as they are read.
func Check(ctx context.Context, r io.ReaderAt, hashOffset int64, root Root, workers int) (Superblock, error) {
	s, err := ReadSuperblock(r, hashOffset)
	if err != nil {
		return s, err
	}
	size := s.DataBlocks * int64(s.DataBlock)
	if size > hashOffset || hashOffset%int64(s.HashBlock) != 0 {
		return s, fmt.Errorf("verity superblock at %d: %d blocks of %d bytes do not fit before it", hashOffset, s.DataBlocks, s.DataBlock)
	}
	t, got, err := Hash(ctx, s.Params, r, size, workers)
	if err != nil {
		return s, err
	}
	if got != root {
		return s, fmt.Errorf("%w: got %s, want %s", ErrCorrupt, got, root)
	}
	_, err = t.WriteAt(&comparer{r: r}, hashOffset+int64(s.HashBlock))
	return s, err
}

// comparer is a writer that finds what is written already there, or fails.
type comparer struct {
	r   io.ReaderAt
	buf []byte
}

func (c *comparer) WriteAt(b []byte, at int64) (int, error) {
	if len(c.buf) < len(b) {
		c.buf = make([]byte, len(b))
	}
	got := c.buf[:len(b)]
	if n, err := c.r.ReadAt(got, at); n < len(got) {
		return 0, fmt.Errorf("reading the tree at %d: %w", at, noEOF(err))
	}
	if !bytes.Equal(got, b) {
		return 0, fmt.Errorf("%w: the tree at %d is not that of the data", ErrCorrupt, at)
	}
	return len(b), nil
}
