package qemu

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	vhostVsock = "/dev/vhost-vsock"
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h, _IOW(0xAF, 0x60, __u64).
	setGuestCID = 0x4008AF60
	// firstCID is the lowest number for a guest: 0, 1 and 2 are reserved (vsock(7)).
	firstCID = 3
	cidTries = 64
)

// claimCID opens the vsock device and takes a free number for the guest. It belongs to the VM as long as the device is open there.
func claimCID(ctx context.Context) (*os.File, uint32, error) {
	f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the host's vsock device: %w", err)
	}
	cid, err := freeCID(ctx, func(cid uint64) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, cid, nil
}

// freeCID tries numbers at random until claim takes one; that in use by another VM is refused with EADDRINUSE.
func freeCID(ctx context.Context, claim func(uint64) error) (uint32, error) {
	for range cidTries {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, err
		}
		cid := binary.BigEndian.Uint32(b[:])
		if cid < firstCID || cid == 1<<32-1 {
			continue
		}
		err := claim(uint64(cid))
		if err == nil {
			return cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, fmt.Errorf("taking a vsock number for the guest: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("taking a vsock number for the guest: %d numbers at random were all in use", cidTries)
}

// Bounds for a guest that is not there yet.
const (
	vsockTimeout  = 5 * time.Minute // without a deadline of the caller
	vsockPause    = 5 * time.Millisecond
	vsockMaxPause = 250 * time.Millisecond
)

// vsockPort dials the guest's vsock ports.
type vsockPort struct {
	cid     uint32
	connect func(ctx context.Context, cid, port uint32) (net.Conn, error)
}

func newVsockPort(cid uint32) *vsockPort {
	return &vsockPort{cid, func(ctx context.Context, cid, port uint32) (net.Conn, error) {
		c, err := vsock.DialContext(ctx, cid, port, nil)
		if err != nil {
			return nil, err
		}
		return c, nil
	}}
}

// dial connects to a port. Vsock has no queue for connections to a guest that boots, and no event for its being there: they are refused
// (ECONNRESET), or not answered, so that it is tried again after growing pauses, until ctx or the VM ends.
func (p *vsockPort) dial(ctx context.Context, port uint32, ended <-chan struct{}) (net.Conn, error) {
	ctx, cancel := bounded(ctx, vsockTimeout)
	defer cancel()
	pause := vsockPause
	for {
		conn, err := p.connect(ctx, p.cid, port)
		if err == nil {
			return conn, nil
		}
		err = fmt.Errorf("connecting to guest port %d: %w", port, err)
		if !notThereYet(err) {
			return nil, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w; the last attempt: %w", ctx.Err(), err)
		case <-ended:
			t.Stop()
			return nil, err
		}
		pause = min(2*pause, vsockMaxPause)
	}
}

// notThereYet says whether a guest that boots answers so.
func notThereYet(err error) bool {
	for _, e := range []error{unix.ECONNRESET, unix.ECONNREFUSED, unix.ENODEV, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
