package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// fake is a token in memory.
type fake struct {
	mu         sync.Mutex
	values     map[string][]byte
	busy, most atomic.Int32
	hold       chan struct{} // when set, requests wait for it
	err        error
}

func (f *fake) enter() func() {
	if n := f.busy.Add(1); n > f.most.Load() {
		f.most.Store(n)
	}
	if f.hold != nil {
		<-f.hold
	}
	return func() { f.busy.Add(-1) }
}

func (f *fake) Get(_ context.Context, label string) ([]byte, error) {
	defer f.enter()()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	v, ok := f.values[label]
	if !ok {
		return nil, link.Fail(link.StatusNotFound, "none")
	}
	return bytes.Clone(v), nil
}

func (f *fake) Put(_ context.Context, label string, value []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[label] = bytes.Clone(value)
	return nil
}

func (f *fake) Delete(_ context.Context, label string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.values, label)
	return nil
}

func (f *fake) Encrypt(_ context.Context, key, hash string, plaintext []byte) ([]byte, error) {
	return append([]byte(key+hash), plaintext...), nil
}

func (f *fake) Decrypt(_ context.Context, key, hash string, ciphertext []byte) ([]byte, error) {
	return append([]byte(key+hash), ciphertext...), nil
}

func (f *fake) Wrap(_ context.Context, _, _ string, plaintext, binding []byte) ([]byte, error) {
	return append(bytes.Clone(plaintext), binding...), nil
}

func (f *fake) Unwrap(_ context.Context, _, _ string, wrapped, _ []byte) ([]byte, error) {
	return bytes.Clone(wrapped), nil
}

// begin serves a token and returns the broker's end.
func begin(t *testing.T, f *fake, sessions int) (net.Conn, <-chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	done := make(chan error, 1)
	go func() {
		err := Serve(t.Context(), theirs, f, sessions)
		theirs.Close()
		done <- err
	}()
	return ours, done
}

func ask(t *testing.T, conn io.ReadWriter, f link.Frame) link.Frame {
	t.Helper()
	if err := link.Write(conn, f); err != nil {
		t.Fatal(err)
	}
	got, err := link.Read(conn)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestServe(t *testing.T) {
	conn, done := begin(t, &fake{values: map[string][]byte{}}, 2)
	for i, c := range []struct {
		op     link.Op
		fields []string
		status link.Status
		want   string
	}{
		{link.OpPut, []string{"l", "value"}, link.StatusOK, ""},
		{link.OpGet, []string{"l"}, link.StatusOK, "value"},
		{link.OpGet, []string{"m"}, link.StatusNotFound, ""},
		{link.OpDelete, []string{"l"}, link.StatusOK, ""},
		{link.OpGet, []string{"l"}, link.StatusNotFound, ""},
		{link.OpEncrypt, []string{"k", link.SHA1, "x"}, link.StatusOK, "ksha1x"},
		{link.OpWrap, []string{"k", link.SHA256, "x", "y"}, link.StatusOK, "xy"},
		{link.OpUnwrap, []string{"k", link.SHA256, "x", ""}, link.StatusOK, "x"},
		{link.OpGet, nil, link.StatusBadRequest, ""},
		{link.OpGet, []string{""}, link.StatusBadRequest, ""},
		{link.OpGet, []string{string(make([]byte, link.MaxLabel+1))}, link.StatusBadRequest, ""},
		{link.OpGet, []string{"l", "m"}, link.StatusBadRequest, ""},
		{link.OpPut, []string{"l", ""}, link.StatusBadRequest, ""},
		{link.OpPut, []string{"l", string(make([]byte, link.MaxValue+1))}, link.StatusBadRequest, ""},
		{link.OpDecrypt, []string{"k", "md5", "x"}, link.StatusBadRequest, ""},
		{link.OpDecrypt, []string{"k", link.SHA256, ""}, link.StatusBadRequest, ""},
		{link.OpWrap, []string{"k", link.SHA256, "x", string(make([]byte, link.MaxLabel+1))}, link.StatusBadRequest, ""},
		{0, nil, link.StatusBadRequest, ""},
		{99, []string{"l"}, link.StatusBadRequest, ""},
	} {
		q := link.Frame{ID: uint64(i + 1), Code: byte(c.op)}
		for _, f := range c.fields {
			q.Fields = append(q.Fields, []byte(f))
		}
		a := ask(t, conn, q)
		if a.ID != q.ID || link.Status(a.Code) != c.status || c.want != "" && string(a.Fields[0]) != c.want {
			t.Errorf("%d %s: got %d %.60q", i, c.op, a.Code, a.Fields)
		}
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAsManyAtOnceAsSessions(t *testing.T) {
	f := &fake{values: map[string][]byte{"l": []byte("v")}, hold: make(chan struct{})}
	conn, _ := begin(t, f, 3)
	go func() {
		for i := range 50 {
			if link.Write(conn, link.Frame{ID: uint64(i + 1), Code: byte(link.OpGet), Fields: [][]byte{[]byte("l")}}) != nil {
				return
			}
		}
	}()
	for range 50 {
		f.hold <- struct{}{}
		if a, err := link.Read(conn); err != nil || a.Code != byte(link.StatusOK) {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if n := f.most.Load(); n > 3 {
		t.Errorf("%d at once", n)
	}
}

func TestTheEnd(t *testing.T) {
	f := &fake{err: link.Fail(link.StatusLost, "CKR_DEVICE_REMOVED")}
	conn, done := begin(t, f, 1)
	if a := ask(t, conn, link.Frame{ID: 1, Code: byte(link.OpGet), Fields: [][]byte{[]byte("l")}}); a.Code != byte(link.StatusLost) {
		t.Errorf("%+v", a)
	}
	if err := <-done; !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	conn, done = begin(t, f, 1)
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err == nil {
		t.Log("it took all of it")
	}
	if err := <-done; !errors.Is(err, link.ErrFrame) {
		t.Error(err)
	}
}

// stream is a broker that sends bytes and reads nothing.
type stream struct {
	io.Reader
	io.Writer
}

func FuzzServe(f *testing.F) {
	var b bytes.Buffer
	for i, fields := range [][]string{{"l"}, {"l", "v"}, {"l"}, {"k", "sha1", "x"}, {"k", "sha256", "x"},
		{"k", "sha256", "x", "c"}, {"k", "sha1", "x", ""}} {
		q := link.Frame{ID: uint64(i + 1), Code: byte(i + 1)}
		for _, s := range fields {
			q.Fields = append(q.Fields, []byte(s))
		}
		_ = link.Write(&b, q)
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		err := Serve(t.Context(), stream{bytes.NewReader(data), &out}, &fake{values: map[string][]byte{}}, 2)
		for out.Len() > 0 { // whatever was asked, what is answered is frames
			a, rerr := link.Read(&out)
			if rerr != nil {
				t.Fatal(rerr)
			}
			if a.Code != byte(link.StatusOK) {
				if _, ferr := link.FailureOf(a); ferr != nil {
					t.Fatal(ferr)
				}
			}
		}
		if err != nil && !errors.Is(err, link.ErrFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(fmt.Errorf("ends with %w", err))
		}
	})
}
