package mux

import (
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// ErrNoVsock means that the machine has no usable vsock transport to a host.
var ErrNoVsock = errors.New("no vsock transport")

// ListenVsock listens on a vsock port, or returns an error wrapping ErrNoVsock where there is no transport.
func ListenVsock(port uint32) (net.Listener, error) {
	cid, err := vsock.ContextID()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoVsock, err)
	}
	// Without a device for the host the kernel answers "any" or the local loopback.
	if cid == unix.VMADDR_CID_ANY || cid <= unix.VMADDR_CID_HOST {
		return nil, fmt.Errorf("%w: the machine has no context id (%d)", ErrNoVsock, cid)
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listening on vsock port %d: %w", port, err)
	}
	return fromHost{l}, nil
}

// fromHost refuses peers other than the host: a container must not drive its own guest over vsock loopback.
type fromHost struct{ net.Listener }

func (l fromHost) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == unix.VMADDR_CID_HOST {
			return c, nil
		}
		c.Close()
	}
}
