package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cloister/cloister/layer/erofs"
	"github.com/cloister/cloister/layer/verity"
)

// errWorker tells the writer of blocks to stop; wait has the reason.
var errWorker = errors.New("a worker has failed")

// blocks hashes and writes what a file system's writer hands over, with several workers.
type blocks struct {
	out  io.WriterAt
	tree *verity.Tree
	free chan []byte
	jobs chan job

	failed chan struct{} // closed at the first error
	once   sync.Once
	err    error
	wg     sync.WaitGroup
}

type job struct {
	first int64
	data  []byte
}

// newBlocks starts the workers. They need wait to end.
func newBlocks(out io.WriterAt, workers int) (*blocks, error) {
	tree, err := verity.NewTree(verity.Default())
	if err != nil {
		return nil, err
	}
	// One buffer for each worker, one that waits and one that is being filled.
	b := &blocks{out: out, tree: tree, free: make(chan []byte, workers+2), jobs: make(chan job, workers+2), failed: make(chan struct{})}
	for range cap(b.free) {
		b.free <- nil // made when it is needed: most layers are small
	}
	for range workers {
		b.wg.Go(b.work)
	}
	return b, nil
}

func (b *blocks) work() {
	for j := range b.jobs {
		if err := b.one(j); err != nil {
			b.once.Do(func() { b.err = err; close(b.failed) })
		}
		b.free <- j.data
	}
}

func (b *blocks) one(j job) error {
	if err := b.tree.Add(j.first, j.data); err != nil {
		return err
	}
	if b.out == nil {
		return nil
	}
	if _, err := b.out.WriteAt(j.data, j.first*erofs.BlockSize); err != nil {
		return fmt.Errorf("writing the layer: %w", err)
	}
	return nil
}

// Buffer is for the writer of a file system.
func (b *blocks) Buffer(ctx context.Context) ([]byte, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.failed:
		return nil, errWorker
	case buf := <-b.free:
		if buf == nil {
			buf = make([]byte, erofs.BufferSize)
		}
		return buf[:0], nil
	}
}

// Blocks is for the writer of a file system. There are as many places for jobs as buffers, so it does not wait.
func (b *blocks) Blocks(_ context.Context, first int64, data []byte) error {
	b.jobs <- job{first, data}
	return nil
}

// wait ends the workers and returns the first error.
func (b *blocks) wait() error {
	close(b.jobs)
	b.wg.Wait()
	return b.err
}
