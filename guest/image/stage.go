package image

import (
	"io"
	"sync"
)

const (
	chunkBytes  = 128 << 10
	stageChunks = 4
)

// stage runs r in its own goroutine, up to stageChunks chunks ahead of its reader, so that the steps of the pipeline
// work beside each other. Close stops it and waits for it; the source must be unblocked by other means (its context)
// if it may hang.
type stage struct {
	full  chan chunk
	empty chan []byte
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup

	cur []byte // rest of the chunk being read
	buf []byte // its whole buffer
	err error
}

type chunk struct {
	data []byte
	buf  []byte
	err  error
}

func newStage(r io.Reader) *stage {
	s := &stage{full: make(chan chunk, stageChunks), empty: make(chan []byte, stageChunks), done: make(chan struct{})}
	for range stageChunks {
		s.empty <- nil // allocated on first use: small layers need one
	}
	s.wg.Go(func() { s.run(r) })
	return s
}

func (s *stage) run(r io.Reader) {
	defer close(s.full)
	for {
		var buf []byte
		select {
		case buf = <-s.empty:
		case <-s.done:
			return
		}
		if buf == nil {
			buf = make([]byte, chunkBytes)
		}
		n, err := fill(r, buf)
		select {
		case s.full <- chunk{data: buf[:n], buf: buf, err: err}:
		case <-s.done:
			return
		}
		if err != nil {
			return
		}
	}
}

// fill reads until buf is full or an error comes; the bytes before the error are kept.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for empty := 0; n < len(buf) && err == nil; {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if m > 0 {
			empty = 0
		} else if empty++; empty > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

func (s *stage) Read(p []byte) (int, error) {
	for len(s.cur) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if s.buf != nil {
			s.empty <- s.buf // has room: as many buffers as slots
			s.buf = nil
		}
		c, ok := <-s.full
		if !ok {
			s.err = io.ErrClosedPipe
			return 0, s.err
		}
		s.cur, s.buf, s.err = c.data, c.buf, c.err
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	return n, nil
}

// Close ends the goroutine.
func (s *stage) Close() error {
	s.once.Do(func() { close(s.done) })
	s.wg.Wait()
	return nil
}
