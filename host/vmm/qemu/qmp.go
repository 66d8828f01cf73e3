package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
)

// qmpClient speaks QEMU's machine protocol over one connection.
type qmpClient struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)

	greeted chan struct{}
	done    chan struct{} // closed when the connection has ended

	writing sync.Mutex // held while a command is written

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

// qmpError is QEMU's refusal of a command.
type qmpError struct{ Command, Class, Desc string }

func (e *qmpError) Error() string {
	return fmt.Sprintf("%s was refused by the virtual machine monitor: %s", e.Command, process.Printable(e.Desc))
}

// classNotFound is the class of the error for a device that is not there.
const classNotFound = "DeviceNotFound"

// execute runs a command that has no arguments and no interesting answer.
func (q *qmpClient) execute(ctx context.Context, command string) error {
	return q.run(ctx, command, nil, nil)
}

// run runs a command. args are its arguments or nil, out takes its answer unless it is nil, files go along with it.
func (q *qmpClient) run(ctx context.Context, command string, args, out any, files ...*os.File) error {
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
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	if err := q.send(ctx, append(b, '\n'), files); err != nil {
		return fmt.Errorf("sending %s: %w", command, err)
	}
	verdict := func(m qmpMessage) error {
		if m.Error != nil {
			return &qmpError{command, m.Error.Class, m.Error.Desc}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, out); err != nil {
			return fmt.Errorf("reading the answer to %s: %w", command, err)
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

// send writes one command, with its files.
func (q *qmpClient) send(ctx context.Context, line []byte, files []*os.File) error {
	q.writing.Lock()
	defer q.writing.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := q.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if len(files) == 0 {
		_, err := q.conn.Write(line)
		return err
	}
	conn, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files cannot be sent over this connection")
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Fd would make the file blocking, for the caller too.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	n, _, err := conn.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	runtime.KeepAlive(files)
	return err
}

func (q *qmpClient) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
