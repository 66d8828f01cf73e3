//go:build cgo

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/pkcs11/serve"
	"github.com/cloister/cloister/broker/pkcs11/token"
)

const (
	linkFD = 3
	// closeTime bounds the end of a module.
	closeTime = 2 * time.Second
	maxPIN    = 256
)

// serveBroker answers the broker until it goes.
func serveBroker(ctx context.Context, o options) error {
	if err := harden(); err != nil {
		return err
	}
	unix.CloseOnExec(linkFD) // before the module is loaded, which may start programs
	file := os.NewFile(linkFD, "link")
	conn, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("opening file descriptor %d, the link to the broker: %w", linkFD, err)
	}
	defer conn.Close()
	t, err := prepare(o, conn)
	if err != nil {
		return errors.Join(err, link.Write(conn, link.Refusal(0, err)))
	}
	err = link.Write(conn, link.Frame{Code: byte(link.StatusOK)})
	if err == nil {
		err = serve.Serve(ctx, conn, t, o.Sessions)
	}
	closed := make(chan error, 1)
	go func() { closed <- t.Close() }()
	select {
	case cerr := <-closed:
		return errors.Join(err, cerr)
	case <-time.After(closeTime):
		return errors.Join(err, errors.New("the module does not end"))
	}
}

func prepare(o options, conn net.Conn) (*token.Token, error) {
	pin, err := readPIN(o.pinFile)
	if err != nil {
		return nil, err
	}
	return token.Open(o.Options, pin, token.Login{Before: func() error {
		return link.Write(conn, link.Frame{Code: byte(link.StatusLogin)})
	}})
}

// harden keeps the memory of this process from other processes of the same user and from core files.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding memory dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", err)
	}
	return nil
}

// readPIN reads the user PIN. One line break at the end is no part of it.
func readPIN(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe without a writer must not hang
	if err != nil {
		return nil, fmt.Errorf("reading the PIN file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the PIN file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("PIN file %s has mode %s, want a regular file of mode 0600: others could read the PIN", path, info.Mode())
	}
	raw := make([]byte, maxPIN+3)
	n, err := io.ReadFull(f, raw)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the PIN file: %w", err)
	}
	pin := raw[:n]
	for _, end := range []byte("\n\r") {
		if len(pin) > 0 && pin[len(pin)-1] == end {
			pin = pin[:len(pin)-1]
		}
	}
	if len(pin) == 0 || len(pin) > maxPIN {
		clear(raw)
		return nil, fmt.Errorf("PIN file %s holds %d bytes, want 1 to %d", path, len(pin), maxPIN)
	}
	for _, b := range pin {
		if b < ' ' { // also a NUL, at which C would end the PIN
			clear(raw)
			return nil, fmt.Errorf("PIN file %s holds a control character, want one line", path)
		}
	}
	return pin, nil
}
