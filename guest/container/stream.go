package container

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime is how long output is awaited after a process ended while others still hold its pipe.
const drainTime = 500 * time.Millisecond

// past is a deadline that wakes a blocked reader or writer at once.
var past = time.Unix(1, 0)

// reader reads one output of a process. It ends with the writers or, when children of the process hold the pipe open,
// drainTime after the process itself.
type reader struct {
	f *os.File
	// turn is held by the call that reads, so that parts of the output cannot overtake each other.
	turn chan struct{}
	// drained is done once waiting for more output is over.
	drained context.Context
	// eof is closed when the reader has reported the end.
	eof chan struct{}
}

func newReader(f *os.File, drained context.Context) *reader {
	return &reader{f: f, turn: make(chan struct{}, 1), drained: drained, eof: make(chan struct{})}
}

// read returns at least one byte, or io.EOF at the end.
func (r *reader) read(ctx context.Context, buf []byte) (int, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	n, err := r.readTurn(ctx, buf)
	if errors.Is(err, io.EOF) {
		select {
		case <-r.eof:
		default:
			close(r.eof)
		}
	}
	return n, err
}

func (r *reader) readTurn(ctx context.Context, buf []byte) (int, error) {
	wake := func() { _ = r.f.SetReadDeadline(past) }
	for {
		if err := r.f.SetReadDeadline(time.Time{}); err != nil {
			return 0, io.EOF // closed
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if r.drained.Err() != nil {
			return r.readAvailable(buf)
		}
		stopCtx, stopDrain := context.AfterFunc(ctx, wake), context.AfterFunc(r.drained, wake)
		n, err := r.f.Read(buf)
		stopCtx()
		stopDrain()
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err == nil:
			continue
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, unix.EIO):
			// EIO is how a terminal says that nobody has its other side open.
			return 0, io.EOF
		}
		return 0, err
	}
}

// readAvailable takes what is in the pipe without waiting.
func (r *reader) readAvailable(buf []byte) (int, error) {
	raw, err := r.f.SyscallConn()
	if err != nil {
		return 0, io.EOF
	}
	var n int
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), buf) })
		return true
	})
	if err != nil || readErr != nil || n <= 0 {
		return 0, io.EOF
	}
	return n, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// writeAll writes to a process's input until ctx is done.
func writeAll(ctx context.Context, f *os.File, data []byte) (int, error) {
	if err := f.SetWriteDeadline(time.Time{}); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(past) })
	defer stop()
	n, err := f.Write(data)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return n, err
}
