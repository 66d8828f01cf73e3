// Package serve answers the broker's requests inside the helper cloister-pkcs11.
//
// It knows frames and sizes; what a token does is behind the interface Token, so that this package has no C in it. Requests
// are answered by as many goroutines as the token has sessions; when all are busy, none is read.
package serve

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// Token does the work. Its methods are called by several goroutines; their errors are link.Failure or count as failed.
type Token interface {
	Get(ctx context.Context, label string) ([]byte, error)
	Put(ctx context.Context, label string, value []byte) error
	Delete(ctx context.Context, label string) error
	Encrypt(ctx context.Context, key, hash string, plaintext []byte) ([]byte, error)
	Decrypt(ctx context.Context, key, hash string, ciphertext []byte) ([]byte, error)
	Wrap(ctx context.Context, key, hash string, plaintext, binding []byte) ([]byte, error)
	Unwrap(ctx context.Context, key, hash string, wrapped, binding []byte) ([]byte, error)
}

// ErrLost says that the token's session ended. The helper ends with it, and the broker starts another one.
var ErrLost = errors.New("the session with the token ended")

// Serve answers requests until the broker closes conn (nil), sends something that is no request, or the session ends.
func Serve(ctx context.Context, conn io.ReadWriter, t Token, sessions int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &server{conn: conn, token: t, lost: cancel}
	slots := make(chan struct{}, max(sessions, 1))
	var busy sync.WaitGroup
	defer finish(&busy)
	frames, failed := make(chan link.Frame), make(chan error, 1)
	go func() { // the read cannot be interrupted; it ends with the process
		for {
			f, err := link.Read(conn)
			if err != nil {
				failed <- err
				return
			}
			select {
			case frames <- f:
			case <-ctx.Done():
				f.Clear()
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case f := <-frames:
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			busy.Go(func() {
				defer func() { <-slots }()
				s.answer(ctx, f)
			})
		}
	}
}

// grace is how long answers may take after the end; a module that hangs must not keep the helper alive.
const grace = 2 * time.Second

func finish(busy *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { busy.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(grace):
	}
}

type server struct {
	conn  io.Writer
	write sync.Mutex
	token Token
	lost  context.CancelCauseFunc
}

func (s *server) answer(ctx context.Context, f link.Frame) {
	defer f.Clear()
	value, err := Do(ctx, s.token, f)
	defer clear(value)
	out := link.Frame{ID: f.ID, Code: byte(link.StatusOK)}
	if err != nil {
		out = link.Refusal(f.ID, err)
	} else if _, n, _ := link.Op(f.Code).Fields(); n == 1 {
		out.Fields = [][]byte{value}
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := link.Write(s.conn, out); err != nil {
		s.lost(err)
		return
	}
	if link.StatusOf(err) == link.StatusLost {
		s.lost(ErrLost)
	}
}

// Do checks one request and lets the token do it.
func Do(ctx context.Context, t Token, f link.Frame) ([]byte, error) {
	op := link.Op(f.Code)
	want, _, ok := op.Fields()
	if !ok || f.ID == 0 || len(f.Fields) != want {
		return nil, link.Fail(link.StatusBadRequest, "request %d is %s with %d fields", f.ID, op, len(f.Fields))
	}
	label := f.Fields[0]
	if len(label) == 0 || len(label) > link.MaxLabel {
		return nil, link.Fail(link.StatusBadRequest, "the label has %d bytes, want 1 to %d", len(label), link.MaxLabel)
	}
	switch op {
	case link.OpGet:
		return sized(t.Get(ctx, string(label)))
	case link.OpDelete:
		return nil, t.Delete(ctx, string(label))
	case link.OpPut:
		if err := fits(f.Fields[1], link.MaxValue); err != nil {
			return nil, err
		}
		return nil, t.Put(ctx, string(label), f.Fields[1])
	}
	hash := string(f.Fields[1])
	if hash != link.SHA256 && hash != link.SHA1 {
		return nil, link.Fail(link.StatusBadRequest, "the hash is %.16q, want %s or %s", hash, link.SHA256, link.SHA1)
	}
	data := f.Fields[2]
	if err := fits(data, link.MaxValue+1<<10); err != nil { // a wrapped value is longer than what is in it
		return nil, err
	}
	switch op {
	case link.OpEncrypt:
		return sized(t.Encrypt(ctx, string(label), hash, data))
	case link.OpDecrypt:
		return sized(t.Decrypt(ctx, string(label), hash, data))
	}
	if len(f.Fields[3]) > link.MaxLabel {
		return nil, link.Fail(link.StatusBadRequest, "the context has %d bytes, at most %d are taken", len(f.Fields[3]), link.MaxLabel)
	}
	if op == link.OpWrap {
		return sized(t.Wrap(ctx, string(label), hash, data, f.Fields[3]))
	}
	return sized(t.Unwrap(ctx, string(label), hash, data, f.Fields[3]))
}

func fits(b []byte, most int) error {
	if len(b) == 0 || len(b) > most {
		return link.Fail(link.StatusBadRequest, "the value has %d bytes, want 1 to %d", len(b), most)
	}
	return nil
}

// sized refuses what would not fit into an answer.
func sized(b []byte, err error) ([]byte, error) {
	if err == nil && len(b) > link.MaxValue+1<<10 {
		clear(b)
		return nil, link.Fail(link.StatusFailed, "the token's answer has %d bytes, at most %d are passed on", len(b), link.MaxValue+1<<10)
	}
	return b, err
}
