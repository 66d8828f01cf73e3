package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// FromSpec is the path of the network namespace that a pod's specification names. It is empty when the pod is to have a namespace that
// does not exist yet, which is so without CNI (`ctr run`) and where hooks set it up later (nerdctl, docker): Create makes it. A pod that
// has none is in the host's, which is ErrHostNetwork.
func FromSpec(spec *agent.Spec) (path string, err error) {
	found := false
	for _, ns := range spec.GetLinux().GetNamespaces() {
		if ns.GetType() != "network" {
			continue
		}
		if found {
			return "", errors.New("the pod's specification has two network namespaces")
		}
		found, path = true, ns.GetPath()
	}
	switch {
	case !found:
		return "", ErrHostNetwork
	case path != "" && !filepath.IsAbs(path):
		return "", fmt.Errorf("network namespace %q: expected an absolute path", path)
	}
	return path, nil
}

// Create makes a network namespace with this path, whose directory exists, with nothing in it but loopback. It lives until Remove, also
// when this process ends. On failure nothing is left.
func Create(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	f.Close()
	if err := onThread(func() error { return create(path) }); err != nil {
		return fmt.Errorf("making a network namespace: %w", errors.Join(err, Remove(path)))
	}
	return nil
}

func create(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return UpLoopback()
}

// UpLoopback brings the loopback interface of the calling thread's namespace up, as every program in a pod expects it.
func UpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bringing the pod's loopback interface up: %w", err)
	}
	return nil
}

// Remove takes away a namespace that Create made, and may be called again, or for one that was never made. Processes that are in it keep
// it alive.
func Remove(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted, or nothing is there
			break
		}
		if err != nil {
			return fmt.Errorf("removing the network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the network namespace: %w", err)
	}
	return nil
}

// onThread calls fn on a thread that ends with it, whatever was done to it.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process cannot end, and what /proc/self shows is its namespace. While it is held here, the other
			// goroutine gets another.
			defer runtime.UnlockOSThread()
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}
