package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

const (
	sourceChunk  = 256 << 10 // bytes read at a time
	sourceChunks = 8         // that are under way
	// maxTrailer is how much may follow the end of an archive, in bytes: tar fills up its last record.
	maxTrailer = 64 << 20
)

// source reads a stream ahead, and hashes it meanwhile, so that its reader waits for neither.
type source struct {
	ctx    context.Context
	cancel context.CancelFunc
	free   chan []byte
	chunks chan *chunk // to the reader
	hashes chan *chunk
	wg     sync.WaitGroup
	sum    hash.Hash
	err    error // of the stream, valid once chunks is closed; io.EOF at its end

	now  *chunk
	left []byte // of now
}

// chunk is a piece of the stream. It is free when the reader and the hash have had it.
type chunk struct {
	data []byte
	uses atomic.Int32
}

// newSource starts to read. It needs stop to end.
func newSource(ctx context.Context, r io.Reader) *source {
	ctx, cancel := context.WithCancel(ctx)
	s := &source{ctx: ctx, cancel: cancel, sum: sha256.New(), free: make(chan []byte, sourceChunks),
		chunks: make(chan *chunk, sourceChunks), hashes: make(chan *chunk, sourceChunks)}
	for range sourceChunks {
		s.free <- nil
	}
	s.wg.Go(func() {
		for c := range s.hashes {
			s.sum.Write(c.data)
			s.done(c)
		}
	})
	s.wg.Go(func() { s.fill(r) })
	return s
}

func (s *source) fill(r io.Reader) {
	defer close(s.hashes)
	defer close(s.chunks)
	for {
		var buf []byte
		select {
		case <-s.ctx.Done():
			s.err = s.ctx.Err()
			return
		case buf = <-s.free:
		}
		if buf == nil {
			buf = make([]byte, sourceChunk)
		}
		// Not io.ReadFull: an unexpected end that the stream reports must not look like its end.
		buf, n, err := buf[:sourceChunk], 0, error(nil)
		for n < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[n:])
			n += m
		}
		if n > 0 {
			c := &chunk{data: buf[:n]}
			c.uses.Store(2)
			s.hashes <- c // both have room for all chunks
			s.chunks <- c
		}
		if err != nil {
			s.err = err
			return
		}
	}
}

func (s *source) done(c *chunk) {
	if c.uses.Add(-1) == 0 {
		s.free <- c.data
	}
}

func (s *source) Read(b []byte) (int, error) {
	for len(s.left) == 0 {
		if s.now != nil {
			s.done(s.now)
			s.now = nil
		}
		select {
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		case c, ok := <-s.chunks:
			if !ok {
				return 0, s.err
			}
			s.now, s.left = c, c.data
		}
	}
	n := copy(b, s.left)
	s.left = s.left[n:]
	return n, nil
}

// rest reads up to the end of the stream and returns the digest of all of it.
func (s *source) rest() (string, error) {
	n, err := io.Copy(io.Discard, io.LimitReader(s, maxTrailer+1))
	if err != nil {
		return "", fmt.Errorf("reading what follows the layer's archive: %w", err)
	}
	if n > maxTrailer {
		return "", fmt.Errorf("more than %d bytes follow the layer's archive", maxTrailer)
	}
	s.wg.Wait()
	return "sha256:" + hex.EncodeToString(s.sum.Sum(nil)), nil
}

// stop ends reading. It waits for a read of the stream that is under way: nobody may use the stream's reader at the same time.
func (s *source) stop() {
	s.cancel()
	s.wg.Wait()
}
