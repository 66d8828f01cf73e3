package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// consoleSocket receives the terminal of a process from the runtime.
type consoleSocket struct {
	path string
	l    *net.UnixListener
}

func listenConsole(path string) (*consoleSocket, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the console socket: %w", err)
	}
	return &consoleSocket{path: path, l: l}, nil
}

func (c *consoleSocket) close() { c.l.Close() }

// receive waits for the runtime to send the master side of the terminal.
func (c *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.l.SetDeadline(past) })
	defer stop()
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("waiting for the terminal: %w", errors.Join(ctx.Err(), err))
	}
	defer conn.Close()
	stopConn := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	defer stopConn()
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("receiving the terminal: %d messages: %w", len(msgs), errors.Join(err, unix.EPROTO))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receiving the terminal: %d descriptors: %w", len(fds), errors.Join(err, unix.EPROTO))
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("preparing the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "tty"), nil
}
