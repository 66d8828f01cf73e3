package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Uevents is a subscription to the kernel's device events.
type Uevents struct{ sock *os.File }

// OpenUevents subscribes. Devices that appear from now on are not missed by WaitFor.
func OpenUevents() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("opening the device event socket: %w", err)
	}
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribing to device events: %w", err)
	}
	return &Uevents{sock: os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends the subscription.
func (u *Uevents) Close() error { return u.sock.Close() }

// WaitFor returns when check says so. Check runs at once and again after every device event; what an event says is not
// used, the state of the system is.
func (u *Uevents) WaitFor(ctx context.Context, what string, check func() (bool, error)) error {
	stop := context.AfterFunc(ctx, func() { _ = u.sock.SetReadDeadline(past) })
	defer stop()
	buf := make([]byte, 8<<10)
	for {
		// An earlier wait that was given up may have left its wake-up behind.
		if err := u.sock.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
		ok, err := check()
		if err != nil || ok {
			return err
		}
		// A full queue (ENOBUFS) means lost events, which looking again makes good.
		_, err = u.sock.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
	}
}
