package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// frame is a header of the multiplexer's protocol.
func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := make([]byte, frameHeader)
	b[1] = kind
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint32(b[4:], stream)
	binary.BigEndian.PutUint32(b[8:], length)
	return b
}

func TestGuardEndsTheChannel(t *testing.T) {
	for name, tt := range map[string]struct {
		send func(io.Writer)
		want error
	}{
		"stream": {func(w io.Writer) { _, _ = w.Write(frame(1, flagSYN, 2, 0)) }, errGuestStream},
		"pings": {func(w io.Writer) {
			for i := range uint32(maxPings + 1) {
				if _, err := w.Write(frame(framePing, flagSYN, 0, i)); err != nil {
					return
				}
			}
		}, errGuestPings},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			g := &guarded{Conn: ours}
			s, err := newMux(g)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			tt.send(theirs)
			select {
			case <-s.CloseChan():
			case <-testContext(t).Done():
				t.Fatal("the channel goes on")
			}
			if !errors.Is(g.broken(), tt.want) {
				t.Errorf("it ended with %v", g.broken())
			}
		})
	}
}

// TestGuardFollowsFrames: what looks like a header inside data is none, however the bytes are cut.
func TestGuardFollowsFrames(t *testing.T) {
	evil := frame(1, flagSYN, 2, 0)
	stream := append(frame(frameData, 0, 1, uint32(len(evil))), evil...)
	stream = append(stream, frame(framePing, 2, 0, 7)...)
	for size := 1; size <= len(stream); size++ {
		var g guarded
		for rest := stream; len(rest) > 0; {
			n := min(size, len(rest))
			if err := g.watch(rest[:n]); err != nil {
				t.Fatalf("in pieces of %d bytes: %v", size, err)
			}
			rest = rest[n:]
		}
		if err := g.watch(evil); !errors.Is(err, errGuestStream) {
			t.Errorf("in pieces of %d bytes: a stream of the guest gave %v", size, err)
		}
	}
}

func FuzzGuard(f *testing.F) {
	f.Add(frame(frameData, 0, 1, 3), 5)
	f.Add(frame(framePing, 1, 0, 3), 12)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 0 || cut > len(b) {
			return
		}
		var whole, pieces guarded
		a := whole.watch(b)
		c := pieces.watch(b[:cut])
		if c == nil {
			c = pieces.watch(b[cut:])
		}
		if !errors.Is(a, c) {
			t.Errorf("%v whole, %v in two pieces", a, c)
		}
	})
}

func TestFreeCID(t *testing.T) {
	ctx := testContext(t)
	tries := 0
	cid, err := freeCID(ctx, func(cid uint64) error {
		if tries++; tries < 4 {
			return unix.EADDRINUSE
		}
		return nil
	})
	if err != nil || cid < firstCID || tries != 4 {
		t.Errorf("number %d after %d tries, %v", cid, tries, err)
	}
	if _, err := freeCID(ctx, func(uint64) error { return unix.EADDRINUSE }); err == nil {
		t.Error("a number was found where all are in use")
	}
	if _, err := freeCID(ctx, func(uint64) error { return unix.EPERM }); !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
}

func TestVsockDial(t *testing.T) {
	tries := 0
	p := &vsockPort{7, func(_ context.Context, cid, port uint32) (net.Conn, error) {
		if cid != 7 || port != 1024 {
			t.Errorf("dialled %d:%d", cid, port)
		}
		if tries++; tries < 3 {
			return nil, unix.ECONNRESET
		}
		a, b := net.Pipe()
		b.Close()
		return a, nil
	}}
	conn, err := p.dial(testContext(t), 1024, nil)
	if err != nil || tries != 3 {
		t.Fatalf("%d tries, %v", tries, err)
	}
	conn.Close()
	ended := make(chan struct{})
	close(ended)
	tries = -1000
	if _, err := p.dial(testContext(t), 1024, ended); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a VM that has ended: %v", err)
	}
	short, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	if _, err := p.dial(short, 1024, nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a guest that does not come: %v", err)
	}
	p.connect = func(context.Context, uint32, uint32) (net.Conn, error) { return nil, unix.EACCES }
	if _, err := p.dial(testContext(t), 1024, nil); !errors.Is(err, unix.EACCES) {
		t.Errorf("a fault that stays: %v", err)
	}
}
