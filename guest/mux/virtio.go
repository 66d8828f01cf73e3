package mux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// PortName is the virtio-serial port the host connects to the guest's multiplexer.
const PortName = "cloister.agent.0"

// ErrNoPort means that the machine has no virtio-serial port of the wanted name.
var ErrNoPort = errors.New("no such virtio-serial port")

// FindVirtioPort returns the device node of the named virtio-serial port; sys and dev are normally /sys and /dev.
func FindVirtioPort(sys, dev, name string) (string, error) {
	class := filepath.Join(sys, "class/virtio-ports")
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("listing virtio-serial ports: %w", err)
	}
	for _, e := range entries {
		got, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(got)) == name {
			return filepath.Join(dev, e.Name()), nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrNoPort)
}

// OpenVirtioPort opens the port and waits, without polling, until the host has connected its end: before that, reads
// report the end of the stream.
func OpenVirtioPort(ctx context.Context, path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := waitConnected(ctx, fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("waiting for the host on %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// waitConnected blocks until fd no longer reports a hang-up. The registration is edge-triggered: the first wait returns
// at once with the present state, later ones only when the driver wakes the port, which it does when the host connects.
func waitConnected(ctx context.Context, fd int) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("creating epoll: %w", err)
	}
	defer unix.Close(ep)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("creating eventfd: %w", err)
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // the eventfd must stay open until the write is over
		}
	}()
	for _, w := range []struct {
		fd     int
		events uint32
	}{{fd, unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET}, {wake, unix.EPOLLIN}} {
		ev := unix.EpollEvent{Events: w.events, Fd: int32(w.fd)}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, w.fd, &ev); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	events := make([]unix.EpollEvent, 2)
	for {
		n, err := unix.EpollWait(ep, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, ev := range events[:n] {
			if int(ev.Fd) == fd && ev.Events&unix.EPOLLHUP == 0 {
				return nil
			}
		}
	}
}
