package stdio

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is what a fifo is made to hold: with the usual 64 KiB a writer and a reader take turns.
const pipeSize = 256 << 10

// discard is the place for output that nobody wants.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
func (discard) finish() error               { return nil }
func (discard) interrupt()                  {}

// file is an output that is a fifo, a pipe or a file.
type file struct {
	f    *os.File
	once sync.Once
	err  error
}

func (f *file) Write(p []byte) (int, error) { return f.f.Write(p) }

func (f *file) Close() error {
	f.once.Do(func() { f.err = f.f.Close() })
	return f.err
}

func (f *file) finish() error { return f.Close() }

// interrupt ends writes to a pipe; one to a regular file does not wait for anybody.
func (f *file) interrupt() { _ = f.f.SetWriteDeadline(time.Now()) }

// openOutput opens the place of an output.
func openOutput(where string) (output, error) {
	if where == "" {
		return discard{}, nil
	}
	path, create := where, false
	if scheme, _, ok := strings.Cut(where, "://"); ok {
		if scheme != "file" {
			return nil, fmt.Errorf("%q: no such kind of output\nhint: fifo paths, file:// and binary:// are known; containerd's io_type must not be streaming",
				clip(where))
		}
		u, err := url.Parse(where)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", clip(where), err)
		}
		path, create = u.Path, true
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", clip(path))
	}
	if create {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("making the directory of a log: %w", err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		return &file{f: f}, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		return &file{f: f}, nil
	}
	// Read and write: opening does not wait for a reader, and one that leaves does not break the fifo.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	enlarge(f)
	return &fifoOut{file: file{f: f}, path: path, patience: readerTime, cut: make(chan struct{})}, nil
}

// enlarge makes a pipe bigger, if the system lets us: it is only faster.
func enlarge(f *os.File) {
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// input is stdin. keep is our own writing end of the fifo: while it is open, there is no end of file.
type input struct {
	r        *os.File
	keep     *os.File // nil for what is no fifo
	lastOnce sync.Once
	once     sync.Once
}

func openInput(path string) (*input, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", clip(path))
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	in := &input{r: r}
	st, err := r.Stat()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if st.Mode()&os.ModeNamedPipe != 0 {
		if in.keep, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return in, nil
}

func (i *input) Read(p []byte) (int, error) { return i.r.Read(p) }

// last lets the end of file through.
func (i *input) last() {
	i.lastOnce.Do(func() {
		if i.keep != nil {
			i.keep.Close()
		}
	})
}

// close ends a Read that waits.
func (i *input) close() {
	i.last()
	i.once.Do(func() { i.r.Close() })
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
