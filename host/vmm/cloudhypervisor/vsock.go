package cloudhypervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/cloister/cloister/host/process"
)

// Dial opens a connection to a port of the guest. The guest's kernel refuses ports on which nobody listens yet, and says nothing when
// that changes; Dial asks again, more and more slowly, until the guest accepts, ctx ends or the VM does.
func (v *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	pause := 5 * time.Millisecond
	for {
		conn, err := connect(ctx, v.vsock, port)
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, errAnswer) {
			return nil, fmt.Errorf("connecting to guest port %d: %w", port, err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
			pause = min(2*pause, 200*time.Millisecond)
			continue
		case <-v.exited:
			if e := v.Err(); e != nil {
				err = e
			}
		case <-ctx.Done():
		}
		t.Stop()
		return nil, fmt.Errorf("connecting to guest port %d: %w", port, err)
	}
}

// lineLimit bounds the monitor's answer: "OK ", the number of a port and a line feed.
const lineLimit = 32

// errAnswer is an answer that is none of the protocol.
var errAnswer = errors.New("the monitor answered")

// connect opens one connection with the hybrid vsock handshake (docs/vsock.md in cloud-hypervisor/cloud-hypervisor).
func connect(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = handshake(conn, port)
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func handshake(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	// Byte by byte: what follows the line belongs to the stream.
	var line []byte
	for len(line) < lineLimit {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the guest does not listen")
			}
			return err
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if !bytes.HasPrefix(line, []byte("OK ")) || len(bytes.Trim(line[3:], "0123456789")) > 0 {
			break
		}
		return nil
	}
	return fmt.Errorf("%w %q", errAnswer, strings.TrimSpace(process.Printable(string(line))))
}
