package qemu

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// newMux makes the host's end of the stream multiplexer on the agent port. The guest may not be there yet: what is sent waits in the
// socket until the guest opens its port, so that a first request needs no retry.
func newMux(conn net.Conn) (*yamux.Session, error) {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // a guest that boots, or is debugged, answers late; the end of the VM closes the connection
	c.StreamOpenTimeout = 0
	c.ConnectionWriteTimeout = 2 * time.Minute
	c.LogOutput = io.Discard
	return yamux.Client(conn, c)
}

// dialStream opens a stream and names the guest port it is for.
func dialStream(ctx context.Context, s *yamux.Session, port uint32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		stream, err := s.OpenStream()
		if err == nil {
			var prefix [4]byte
			binary.BigEndian.PutUint32(prefix[:], port)
			if _, err = stream.Write(prefix[:]); err != nil {
				stream.Close()
			}
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		done <- result{conn: stream}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("connecting to guest port %d: %w", port, r.err)
		}
		return r.conn, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.conn != nil {
				r.conn.Close()
			}
		}()
		return nil, fmt.Errorf("connecting to guest port %d: %w", port, ctx.Err())
	}
}
