package snapshotter

import (
	"io"
	"sync"
)

// Buffers between unpacking and building, which are two processors' work.
const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// aheadReader reads in a goroutine of its own, a bounded number of buffers ahead of who reads it.
type aheadReader struct {
	full, free chan []byte
	end        chan struct{}
	err        error // valid when full is closed
	now, rest  []byte
	stop       func() error // lets a Read that waits return
	closer     func()
	done       chan struct{}
	once       sync.Once
}

func runAhead(r io.Reader, stop func() error, closer func()) *aheadReader {
	a := &aheadReader{full: make(chan []byte, aheadBuffers), free: make(chan []byte, aheadBuffers), end: make(chan struct{}), done: make(chan struct{}), stop: stop, closer: closer, err: io.ErrClosedPipe}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	go a.run(r)
	return a
}

func (a *aheadReader) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.end:
			return
		}
		n := 0
		var err error
		for n < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[n:])
			n += m
		}
		if n > 0 {
			a.full <- buf[:n] // there is always room: no more buffers are about than fit
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

func (a *aheadReader) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.now != nil {
			a.free <- a.now[:cap(a.now)]
			a.now = nil
		}
		next, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.now, a.rest = next, next
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine before it closes what that reads.
func (a *aheadReader) Close() (err error) {
	a.once.Do(func() {
		close(a.end)
		err = a.stop()
		<-a.done
		a.closer()
	})
	return err
}
