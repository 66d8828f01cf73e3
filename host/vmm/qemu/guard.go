package qemu

import (
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
)

// The multiplexer's frames: 12 bytes of header (version, type, flags, stream, length), and for type data as many bytes as length says.
const (
	frameHeader = 12
	frameData   = 0
	framePing   = 2
	flagSYN     = 1
)

// maxPings is how many pings a guest may send in its life. Ours sends none; each that is not answered yet holds memory here.
const maxPings = 256

var (
	errGuestStream = errors.New("the guest opened a stream to the host, which only the host may do")
	errGuestPings  = errors.New("the guest floods the agent channel with pings")
)

// guarded watches what the guest sends on the agent channel, before the multiplexer acts on it. Streams that the guest opens and pings
// that it sends would take memory of the host, as much as the guest likes; both end the channel. The data of a stream is bounded by
// the multiplexer's window.
type guarded struct {
	net.Conn
	header [frameHeader]byte
	have   int    // bytes of the header
	body   uint32 // bytes of the frame's data that are still to come
	pings  int
	fault  atomic.Pointer[error] // what the guest did
}

// broken is what the guest did to end the channel, or nil.
func (g *guarded) broken() error {
	if err := g.fault.Load(); err != nil {
		return *err
	}
	return nil
}

func (g *guarded) Read(p []byte) (int, error) {
	if err := g.broken(); err != nil {
		return 0, err
	}
	n, err := g.Conn.Read(p)
	if fault := g.watch(p[:n]); fault != nil {
		g.fault.Store(&fault)
		g.Conn.Close()
		return 0, fault
	}
	return n, err
}

func (g *guarded) watch(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint32(len(p)), g.body)
			g.body -= n
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < frameHeader {
			return nil
		}
		g.have = 0
		kind, flags := g.header[1], binary.BigEndian.Uint16(g.header[2:])
		switch {
		case kind == framePing:
			if g.pings++; g.pings > maxPings {
				return errGuestPings
			}
		case flags&flagSYN != 0:
			return errGuestStream
		case kind == frameData:
			g.body = binary.BigEndian.Uint32(g.header[8:])
		}
	}
	return nil
}
