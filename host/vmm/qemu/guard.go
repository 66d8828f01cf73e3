package qemu

import (
	"encoding/binary"
	"errors"
	"net"
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
	err    error
}

func (g *guarded) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.Conn.Read(p)
	if g.err = g.watch(p[:n]); g.err != nil {
		g.Conn.Close()
		return 0, g.err
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
