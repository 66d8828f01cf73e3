package vmmtest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// Taps makes a tap with several queues in a network namespace of its own, which ends with the test.
func Taps(t testing.TB, name string, queues int) []*os.File {
	t.Helper()
	var files []*os.File
	done, end := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		for i := 0; i < queues && err == nil; i++ {
			var f *os.File
			if f, err = openTap(name, queues > 1); err == nil {
				files = append(files, f)
			}
		}
		done <- err
		<-end
	}()
	t.Cleanup(func() {
		close(end)
		for _, f := range files {
			f.Close()
		}
	})
	if err := <-done; err != nil {
		needs.Missing(t, "the right to make taps: %v", err)
	}
	return files
}

func openTap(name string, multi bool) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	return f, unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
}
