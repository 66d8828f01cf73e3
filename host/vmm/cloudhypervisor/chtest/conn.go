package chtest

import (
	"context"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fileListener accepts connections that collect the descriptors that come with the bytes, as the real program's HTTP server does.
type fileListener struct{ *net.UnixListener }

func (l fileListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &fileConn{UnixConn: c}, nil
}

type fileConn struct {
	*net.UnixConn
	mu    sync.Mutex
	files []*os.File
}

func (c *fileConn) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*64))
	n, oobn, _, _, err := c.ReadMsgUnix(p, oob)
	if msgs, perr := unix.ParseSocketControlMessage(oob[:oobn]); perr == nil {
		for _, m := range msgs {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				continue
			}
			c.mu.Lock()
			for _, fd := range fds {
				c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
			}
			c.mu.Unlock()
		}
	}
	return n, err
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// received takes the descriptors that came on the connection of a request.
func received(ctx context.Context) []*os.File {
	c, ok := ctx.Value(connKey{}).(*fileConn)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.files
	c.files = nil
	return files
}
