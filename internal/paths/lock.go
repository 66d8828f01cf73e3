package paths

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ErrLocked is returned by TryLock when another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// Lock is an exclusive lock on a file. The kernel releases it when the process that holds it ends, however it ends, so a lock that
// can be taken proves that its former holder is gone.
type Lock struct{ f *os.File }

// TryLock takes the lock or returns ErrLocked at once.
func TryLock(name string) (*Lock, error) {
	f, err := openLock(name)
	if err != nil {
		return nil, err
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, ErrLocked)
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return &Lock{f: f}, nil
}

// WaitLock waits for the lock until ctx ends.
func WaitLock(ctx context.Context, name string) (*Lock, error) {
	f, err := openLock(name)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		return &Lock{f: f}, nil
	case <-ctx.Done():
		// The waiting call cannot be interrupted; when it does get the lock it gives it back.
		go func() { <-done; f.Close() }()
		return nil, fmt.Errorf("waiting for lock %s: %w", name, ctx.Err())
	}
}

func openLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock: %w", err)
	}
	return f, nil
}

// Unlock releases the lock. It may be called more than once.
func (l *Lock) Unlock() { l.f.Close() }
