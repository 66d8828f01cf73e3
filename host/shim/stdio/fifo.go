package stdio

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// readerTime is how long the end of an output waits for a reader that is not there.
const readerTime = time.Second

// fifoOut is an output that is a fifo. Since opening it did not wait for a reader, its end may have to: clients of containerd open their end
// in the background, and a short process could be over before. What was written would be lost then, and the client's open would wait for ever.
type fifoOut struct {
	file
	path     string
	patience time.Duration // readerTime
	cut      chan struct{} // closed by interrupt
	cutOnce  sync.Once
}

func (f *fifoOut) interrupt() {
	f.cutOnce.Do(func() { close(f.cut) })
	f.file.interrupt()
}

// finish gives up our reading end, waits for somebody else's for a while, and closes. While the writing end is open nothing is lost.
func (f *fifoOut) finish() error {
	w, err := unix.Open(f.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil { // the fifo was removed: nobody can come
		return f.Close()
	}
	defer unix.Close(w)
	err = f.Close()
	second, openErr := unix.Open(f.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if openErr == nil {
		unix.Close(second)
		return err
	}
	if errors.Is(openErr, unix.ENXIO) { // no reader
		f.awaitReader()
	}
	return err
}

// awaitReader waits in open, which is how the kernel tells of a reader. To end the wait we are that reader ourselves for a moment.
func (f *fifoOut) awaitReader() {
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		for {
			fd, err := unix.Open(f.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	timer := time.NewTimer(f.patience)
	defer timer.Stop()
	select {
	case <-opened:
		return
	case <-timer.C:
	case <-f.cut:
	}
	// Until the other goroutine is through: it may not have come to its open yet.
	if fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		<-opened
		unix.Close(fd)
	}
}
