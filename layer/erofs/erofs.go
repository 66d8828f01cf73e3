// Package erofs makes an EROFS file system of the tar stream of an image layer, in one pass and always the same bytes for the same
// stream. docs/reference/layers.md says how, field by field; the format is the kernel's (Documentation/filesystems/erofs.rst and
// fs/erofs/erofs_fs.h).
//
// The data of files is written as it comes, from block 1 on. What describes them is kept in memory, within limits, and follows the
// data. Block 0 with the superblock is written last. Every stream is taken for hostile: names stay within the file system, and memory
// is bounded by Options.
package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cloister/cloister/layer/internal/limit"
)

const (
	// BlockSize is the size of a block in bytes.
	BlockSize = 4096
	// BufferSize is the size of the buffers in which blocks are handed over, in bytes.
	BufferSize = 256 * BlockSize

	blockBits = 12
	maxPath   = 4095 // PATH_MAX without the zero byte
	maxName   = 255  // NAME_MAX
	maxDepth  = 2048 // directories within each other; a path has no more
	maxHops   = 40   // symbolic links followed in one name, as in the kernel
	maxSteps  = 50_000_000
	maxHoles  = 1 << 40 // bytes of all files, holes of sparse ones included
)

// Options bound what a stream may make. Zero values are defaults.
type Options struct {
	MaxSize    int64 // of the image in bytes; 16 GiB
	MaxEntries int64 // files, directories and links, replaced ones too; 1,000,000
	MaxText    int64 // bytes of names, link targets and extended attributes; 256 MiB
}

func (o Options) withDefaults() Options {
	if o.MaxSize <= 0 {
		o.MaxSize = 16 << 30
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 1_000_000
	}
	if o.MaxText <= 0 {
		o.MaxText = 256 << 20
	}
	return o
}

// LimitError says which limit a stream exceeds.
type LimitError = limit.Error

// Sink takes an image as it is made.
type Sink interface {
	// Buffer returns an empty buffer with room for BufferSize bytes. It may wait until one is free.
	Buffer(ctx context.Context) ([]byte, error)
	// Blocks takes whole blocks, of which the first has this number, in a buffer that came from Buffer. Numbers rise from 1;
	// block 0 comes last. The buffer belongs to the sink again.
	Blocks(ctx context.Context, first int64, blocks []byte) error
}

// FromTar reads a tar stream up to the end of the archive, gives the image to the sink and returns its size in blocks. What follows
// the archive in the stream is not read.
func FromTar(ctx context.Context, stream io.Reader, sink Sink, o Options) (int64, error) {
	o = o.withDefaults()
	w := &writer{ctx: ctx, sink: sink, next: 1, max: o.MaxSize / BlockSize}
	t := newTree(o)
	if err := t.read(stream, w); err != nil {
		return 0, err
	}
	blocks, err := t.write(w)
	if err != nil {
		return 0, fmt.Errorf("writing the file system's metadata: %w", err)
	}
	return blocks, nil
}

// writer fills blocks one after another and hands them to the sink.
type writer struct {
	ctx  context.Context
	sink Sink
	buf  []byte // filled part of the present buffer
	next int64  // number of the block at the start of buf
	max  int64  // blocks of the image
}

// pos is the offset of the next byte in the image.
func (w *writer) pos() int64 { return w.next*BlockSize + int64(len(w.buf)) }

// block is the number of the next block. The last one must have been filled.
func (w *writer) block() int64 { return w.pos() / BlockSize }

// room returns where the next bytes go: at least one. advance takes what was put there.
func (w *writer) room() ([]byte, error) {
	if len(w.buf) == BufferSize {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	if w.buf == nil {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		buf, err := w.sink.Buffer(w.ctx)
		if err != nil {
			return nil, err
		}
		if cap(buf) < BufferSize {
			return nil, errors.New("the sink's buffer is too small")
		}
		w.buf = buf[:0]
	}
	return w.buf[len(w.buf):BufferSize], nil
}

func (w *writer) advance(n int) { w.buf = w.buf[:len(w.buf)+n] }

// flush hands over what is there. It must be whole blocks.
func (w *writer) flush() error {
	if w.buf == nil {
		return nil
	}
	n := int64(len(w.buf) / BlockSize)
	if w.next+n > w.max {
		return &LimitError{What: "size of the layer's file system", Limit: w.max * BlockSize}
	}
	if err := w.sink.Blocks(w.ctx, w.next, w.buf); err != nil {
		return err
	}
	w.next += n
	w.buf = nil
	return nil
}

// Write appends b.
func (w *writer) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		room, err := w.room()
		if err != nil {
			return written, err
		}
		n := copy(room, b[written:])
		w.advance(n)
		written += n
	}
	return written, nil
}

// zeros appends n zero bytes.
func (w *writer) zeros(n int64) error {
	for n > 0 {
		room, err := w.room()
		if err != nil {
			return err
		}
		m := int(min(n, int64(len(room))))
		clear(room[:m])
		w.advance(m)
		n -= int64(m)
	}
	return nil
}

// align fills the last block with zeros.
func (w *writer) align() error {
	return w.zeros(-w.pos() & (BlockSize - 1))
}
