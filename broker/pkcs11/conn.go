package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

var (
	// errLost ends requests whose helper went away; nobody knows whether they were done.
	errLost   = errors.New("the helper " + helperName + " ended")
	errHung   = errors.New("the module did not answer in time, its helper is killed")
	errClosed = errors.New("the broker is done with the token")
)

// conn is a helper that is ready. When anything is wrong with it, it ends, with every request.
type conn struct {
	sock    net.Conn
	timeout time.Duration
	slots   chan struct{} // as many as the token has sessions; a slot is free again when the helper has answered
	out     chan link.Frame
	dead    chan struct{}

	mu      sync.Mutex
	pending map[uint64]*call
	last    uint64
	err     error // why it ended
}

// call is one request under way.
type call struct {
	op     link.Op
	timer  *time.Timer
	done   chan struct{} // closed when answer or err is set
	answer link.Frame
	err    error
	left   bool // nobody waits for the answer
}

func newConn(sock net.Conn, sessions int, timeout time.Duration) *conn {
	c := &conn{sock: sock, timeout: timeout, slots: make(chan struct{}, sessions), out: make(chan link.Frame, sessions),
		dead: make(chan struct{}), pending: map[uint64]*call{}}
	go c.write()
	go c.read()
	return c
}

// fail ends the connection; only the first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.dead) // first: whoever hears of the end must not be given this connection again
	for id, k := range c.pending {
		delete(c.pending, id)
		k.timer.Stop()
		k.err = err
		close(k.done)
	}
	c.sock.Close() // its error would say nothing new
}

func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *conn) write() {
	for {
		select {
		case f := <-c.out:
			err := link.Write(c.sock, f) // a helper that does not read is killed by the timer of the call
			f.Clear()
			if err != nil {
				c.fail(fmt.Errorf("%w: %w", errLost, err))
				return
			}
		case <-c.dead:
			return
		}
	}
}

func (c *conn) read() {
	for {
		f, err := link.Read(c.sock)
		if err == nil {
			err = c.deliver(f)
		}
		if err != nil {
			c.fail(fmt.Errorf("%w: %w", errLost, err))
			return
		}
	}
}

// deliver gives an answer to who asked. An answer that is not one is an error.
func (c *conn) deliver(f link.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.pending[f.ID]
	if !ok {
		return fmt.Errorf("an answer to request %d, which is not under way: %w", f.ID, link.ErrFrame)
	}
	var failed error
	if f.Code == byte(link.StatusOK) {
		if _, want, _ := k.op.Fields(); len(f.Fields) != want {
			return fmt.Errorf("the answer to %s has %d fields, want %d: %w", k.op, len(f.Fields), want, link.ErrFrame)
		}
	} else {
		failure, err := link.FailureOf(f)
		if err != nil {
			return err
		}
		failed = failure
	}
	delete(c.pending, f.ID)
	k.timer.Stop()
	<-c.slots
	if k.left {
		f.Clear()
	} else {
		k.answer, k.err = f, failed
	}
	close(k.done)
	return nil
}

// do asks the helper. When ctx ends first, the answer is thrown away when it comes.
func (c *conn) do(ctx context.Context, op link.Op, fields [][]byte) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.dead: // whatever the reason, this request was not made
		return nil, fmt.Errorf("%w: %w", errLost, c.reason())
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a session of the token: %w", ctx.Err())
	}
	k, err := c.send(op, fields)
	if err != nil {
		return nil, err
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if c.leave(k) {
			return nil, fmt.Errorf("waiting for the token: %w", ctx.Err())
		}
	}
	if k.err != nil {
		return nil, k.err
	}
	if len(k.answer.Fields) == 0 {
		return nil, nil
	}
	return k.answer.Fields[0], nil
}

// send hands a request to the writer. The fields are copied: the caller may be gone when they are written.
func (c *conn) send(op link.Op, fields [][]byte) (*call, error) {
	f := link.Frame{Code: byte(op)}
	for _, b := range fields {
		f.Fields = append(f.Fields, bytes.Clone(b))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		f.Clear()
		return nil, c.err
	}
	c.last++
	f.ID = c.last
	k := &call{op: op, done: make(chan struct{})}
	k.timer = time.AfterFunc(c.timeout, func() { c.fail(errHung) })
	c.pending[f.ID] = k
	c.out <- f // never waits: it has room for as many requests as there are slots
	return k, nil
}

// leave gives up waiting; false means that the answer came.
func (c *conn) leave(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-k.done:
		return false
	default:
		k.left = true
		return true
	}
}
