// Package uevent waits for devices: what an event says is not used, the state of the system is.
package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Events is a subscription to the kernel's device events, for one waiter at a time.
type Events struct{ sock *os.File }

// past is a deadline that is over.
var past = time.Unix(1, 0)

// Open subscribes. Devices that appear from now on are not missed by WaitFor.
func Open() (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("opening the device event socket: %w", err)
	}
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribing to device events: %w", err)
	}
	return &Events{sock: os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends the subscription.
func (u *Events) Close() error { return u.sock.Close() }

// WaitFor returns when check says so. Check runs at once and again after every device event; what an event says is not
// used, the state of the system is.
func (u *Events) WaitFor(ctx context.Context, what string, check func() (bool, error)) error {
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

// WaitFor is that of Events, with a subscription of its own.
func WaitFor(ctx context.Context, what string, check func() (bool, error)) error {
	if ok, err := check(); err != nil || ok {
		return err
	}
	u, err := Open()
	if err != nil {
		return err
	}
	defer u.Close()
	return u.WaitFor(ctx, what, check)
}
