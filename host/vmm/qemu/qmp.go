package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmpClient speaks QEMU's machine protocol over one connection.
type qmpClient struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)

	greeted chan struct{}
	done    chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan qmpMessage
	err     error
}

// qmpMessage is anything QEMU sends: the greeting, a return, an error or an event.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    *uint64         `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

const qmpLineLimit = 1 << 20

func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return qmpMessage{}, fmt.Errorf("reading a message of the machine protocol: %w", err)
	}
	if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return qmpMessage{}, errors.New("message of the machine protocol is neither greeting, answer nor event")
	}
	return m, nil
}

func newQMP(conn net.Conn, onEvent func(string, json.RawMessage)) *qmpClient {
	q := &qmpClient{
		conn: conn, onEvent: onEvent, pending: map[uint64]chan qmpMessage{},
		greeted: make(chan struct{}), done: make(chan struct{}),
	}
	go q.read()
	return q
}

func (q *qmpClient) read() {
	s := bufio.NewScanner(q.conn)
	s.Buffer(make([]byte, 0, 4096), qmpLineLimit)
	var greeted bool
	var err error
	for err == nil && s.Scan() {
		var m qmpMessage
		if m, err = parseQMP(s.Bytes()); err != nil {
			break
		}
		switch {
		case m.QMP != nil && !greeted:
			greeted = true
			close(q.greeted)
		case m.Event != "":
			q.onEvent(m.Event, m.Data)
		case m.ID != nil:
			q.mu.Lock()
			ch := q.pending[*m.ID]
			delete(q.pending, *m.ID)
			q.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		}
	}
	if err == nil {
		err = s.Err()
	}
	if err == nil {
		err = errors.New("the machine protocol's connection was closed")
	}
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	close(q.done)
}

// handshake waits for the greeting and leaves the negotiation mode.
func (q *qmpClient) handshake(ctx context.Context) error {
	select {
	case <-q.greeted:
	case <-q.done:
		return q.failure()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the greeting of the machine protocol: %w", ctx.Err())
	}
	return q.execute(ctx, "qmp_capabilities")
}

// execute runs a command that has no arguments and no interesting answer.
func (q *qmpClient) execute(ctx context.Context, command string) error {
	answer := make(chan qmpMessage, 1)
	q.mu.Lock()
	q.next++
	id := q.next
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
	}()
	b, err := json.Marshal(struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}{command, id})
	if err != nil {
		return err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("sending %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("sending %s: %w", command, err)
	}
	verdict := func(m qmpMessage) error {
		if m.Error != nil {
			return fmt.Errorf("%s was refused by the virtual machine monitor: %s", command, m.Error.Desc)
		}
		return nil
	}
	select {
	case m := <-answer:
		return verdict(m)
	case <-q.done:
		// The monitor may answer and hang up at once, as it does for quit: the answer counts.
		select {
		case m := <-answer:
			return verdict(m)
		default:
			return fmt.Errorf("%s: %w", command, q.failure())
		}
	case <-ctx.Done():
		return fmt.Errorf("waiting for the answer to %s: %w", command, ctx.Err())
	}
}

func (q *qmpClient) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
