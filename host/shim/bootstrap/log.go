package bootstrap

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// openLog opens the bundle's log fifo for the server. Read-write, so that it neither waits for a reader nor breaks when containerd, the
// reader, goes away; not blocking, so that a reader that does not read stops nobody. Without a fifo the log goes nowhere.
func openLog(name string) (*os.File, error) {
	st, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.Mode()&os.ModeNamedPipe == 0 {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the log for containerd: %w", err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the log for containerd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// logWriter writes to the log that start opened. What does not fit is dropped, and counted in the next line that fits.
type logWriter struct {
	fd      int
	dropped atomic.Int64
}

func (w *logWriter) Write(p []byte) (int, error) {
	if n := w.dropped.Load(); n > 0 {
		if w.put([]byte(fmt.Sprintf("level=warning msg=\"%d lines of the shim's log were not read and are lost\"\n", n))) {
			w.dropped.Add(-n)
		}
	}
	if !w.put(p) {
		w.dropped.Add(1)
	}
	return len(p), nil // a log that is not read is no error of who writes it
}

// put writes once. A pipe takes up to 4096 bytes whole or not at all; of a longer line the rest is cut.
func (w *logWriter) put(p []byte) bool {
	for {
		_, err := unix.Write(w.fd, p)
		if err != unix.EINTR {
			return err == nil
		}
	}
}
