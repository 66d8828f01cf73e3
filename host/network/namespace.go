package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrHostNetwork means that the pod asks for the network of the host, which a virtual machine cannot share.
var ErrHostNetwork = errors.New("the pod uses the network of the host, and a virtual machine cannot: it has interfaces of its own" +
	" (hint: remove hostNetwork: true and publish what is needed with hostPort or a Service, or run this pod with the node's runc)")

// ErrGone means that the network namespace is not there any more.
var ErrGone = errors.New("the network namespace is gone")

// Namespace is an open network namespace, which lives until Close even when its path has gone.
type Namespace struct {
	file *os.File
	id   identity
}

// identity tells one namespace from every other. The number of the file is used again when a namespace has gone; the cookie, which
// kernels have since 5.14, is not.
type identity struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Cookie uint64 `json:"cookie,omitempty"`
}

// OpenNamespace opens the network namespace with this path. It refuses that of the host (ErrHostNetwork) and what is no namespace;
// ErrGone means that there is nothing, or only the file of one that has gone.
func OpenNamespace(path string) (*Namespace, error) {
	// Not blocking, so that a pipe with this name is an error and not a wait.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("opening %s: %w", path, ErrGone)
	} else if err != nil {
		return nil, fmt.Errorf("opening the network namespace %s: %w", path, err)
	}
	n := &Namespace{file: os.NewFile(uintptr(fd), path)}
	if err := n.inspect(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Namespace) inspect() error {
	path := n.file.Name()
	fd := int(n.file.Fd())
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		// A file is left of a namespace whose mount has gone.
		return fmt.Errorf("%s is a plain file and not a namespace: %w", path, ErrGone)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%s is a namespace of kind %#x, expected a network namespace: %w", path, kind, errors.Join(err))
	}
	var own unix.Stat_t
	if err := unix.Fstat(fd, &own); err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	n.id = identity{Device: own.Dev, Inode: own.Ino}
	// This thread's namespace and that of the host's first process: the shim itself may have been started elsewhere.
	for _, host := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		var st unix.Stat_t
		if err := unix.Stat(host, &st); err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				continue
			}
			return fmt.Errorf("looking at %s: %w", host, err)
		}
		if st.Dev == own.Dev && st.Ino == own.Ino {
			return fmt.Errorf("%s: %w", path, ErrHostNetwork)
		}
	}
	return n.Do(func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening a socket in %s: %w", path, err)
		}
		defer unix.Close(s)
		if cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
			n.id.Cookie = cookie
		}
		return nil
	})
}

// Close gives the namespace up.
func (n *Namespace) Close() { n.file.Close() }

// Do calls fn on a thread that is in the namespace. The thread ends with fn and is never given to other goroutines, so that nothing
// else can find itself in the pod's network, whatever fails.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering %s: %w", n.file.Name(), err)
		}
		return fn()
	})
}
