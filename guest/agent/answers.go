package agent

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// answers counts requests and responses of the connections of a listener, so that the end can wait for the last answer. The server
// closes a connection that was idle before its one outstanding request came; and clients that find an answer and the end of the
// connection at once may take the end.
type answers struct {
	net.Listener

	mu      sync.Mutex
	open    int           // requests without a response
	conns   int           // connections
	changed chan struct{} // closed and replaced with each change
}

func newAnswers(l net.Listener) *answers { return &answers{Listener: l, changed: make(chan struct{})} }

// Accept is part of net.Listener.
func (a *answers) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a.add(0, 1)
	return &countedConn{Conn: c, all: a}, nil
}

func (a *answers) add(open, conns int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open, a.conns = a.open+open, a.conns+conns
	close(a.changed)
	a.changed = make(chan struct{})
}

// last waits until every request has its response, and then at most grace until the clients have gone.
func (a *answers) last(ctx context.Context, grace time.Duration) {
	a.wait(ctx, func() bool { return a.open <= 0 })
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	a.wait(ctx, func() bool { return a.conns <= 0 })
}

func (a *answers) wait(ctx context.Context, done func() bool) {
	for {
		a.mu.Lock()
		ok, changed := done(), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// countedConn looks at the frames that go by.
type countedConn struct {
	net.Conn
	all     *answers
	in, out frames

	mu   sync.Mutex
	open int
	gone bool
}

func (c *countedConn) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n != 0 && !c.gone {
		c.open += n
		c.all.add(n, 0)
	}
}

// over is the end of the connection: nobody waits for answers any more.
func (c *countedConn) over() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.gone = true
		c.all.add(-c.open, -1)
	}
}

// Read is part of net.Conn. The server reads from one goroutine.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.count(c.in.pass(p[:n], frameRequest))
	if err != nil {
		c.over()
	}
	return n, err
}

// Write is part of net.Conn. The server writes from one goroutine.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.count(-c.out.pass(p[:n], frameResponse))
	return n, err
}

// Close is part of net.Conn.
func (c *countedConn) Close() error {
	c.over()
	return c.Conn.Close()
}

// The frames of ttrpc: length of the body (4 bytes), stream (4), type, flags; see its PROTOCOL.md.
const (
	frameHeader   = 10
	frameType     = 8
	frameRequest  = 1
	frameResponse = 2
)

// frames follows one direction of a connection.
type frames struct {
	header [frameHeader]byte
	have   int    // bytes of the header
	body   uint32 // bytes that are still to come
	kind   byte
}

// pass takes bytes that have gone by and returns how many frames of a kind have ended in them.
func (f *frames) pass(p []byte, kind byte) (ended int) {
	for len(p) > 0 {
		if f.have < frameHeader {
			n := copy(f.header[f.have:], p)
			f.have, p = f.have+n, p[n:]
			if f.have < frameHeader {
				return ended
			}
			f.body, f.kind = binary.BigEndian.Uint32(f.header[:]), f.header[frameType]
		}
		n := min(uint64(f.body), uint64(len(p)))
		f.body, p = f.body-uint32(n), p[n:]
		if f.body == 0 {
			f.have = 0
			if f.kind == kind {
				ended++
			}
		}
	}
	return ended
}
