package eventlog

import (
	"encoding/binary"
	"hash"
	"math/bits"
)

// sm3 is the Chinese national hash (GB/T 32905-2016), which Hygon guests
// measure with and the standard library lacks.
type sm3 struct {
	v   [8]uint32
	buf [64]byte
	n   int
	len uint64
}

func newSM3() hash.Hash {
	s := new(sm3)
	s.Reset()
	return s
}

func (s *sm3) Size() int      { return 32 }
func (s *sm3) BlockSize() int { return 64 }

func (s *sm3) Reset() {
	*s = sm3{v: [8]uint32{
		0x7380166f, 0x4914b2b9, 0x172442d7, 0xda8a0600,
		0xa96f30bc, 0x163138aa, 0xe38dee4d, 0xb0fb0e4e,
	}}
}

func (s *sm3) Write(p []byte) (int, error) {
	total := len(p)
	s.len += uint64(total)
	for len(p) > 0 {
		c := copy(s.buf[s.n:], p)
		s.n += c
		p = p[c:]
		if s.n == len(s.buf) {
			s.block()
			s.n = 0
		}
	}
	return total, nil
}

func (s *sm3) Sum(b []byte) []byte {
	c := *s // Sum must not change the running state
	size := c.len * 8
	pad := make([]byte, 1, 72)
	pad[0] = 0x80
	for (uint64(len(pad))+c.len)%64 != 56 {
		pad = append(pad, 0)
	}
	c.Write(binary.BigEndian.AppendUint64(pad, size))
	for _, w := range c.v {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return b
}

func (s *sm3) block() {
	var w [68]uint32
	for i := range 16 {
		w[i] = binary.BigEndian.Uint32(s.buf[4*i:])
	}
	for i := 16; i < 68; i++ {
		x := w[i-16] ^ w[i-9] ^ bits.RotateLeft32(w[i-3], 15)
		p1 := x ^ bits.RotateLeft32(x, 15) ^ bits.RotateLeft32(x, 23)
		w[i] = p1 ^ bits.RotateLeft32(w[i-13], 7) ^ w[i-6]
	}
	a, b, c, d, e, f, g, h := s.v[0], s.v[1], s.v[2], s.v[3], s.v[4], s.v[5], s.v[6], s.v[7]
	for i := range 64 {
		t, ff, gg := uint32(0x79cc4519), a^b^c, e^f^g
		if i >= 16 {
			t, ff, gg = 0x7a879d8a, a&b|a&c|b&c, e&f|^e&g
		}
		ss1 := bits.RotateLeft32(bits.RotateLeft32(a, 12)+e+bits.RotateLeft32(t, i%32), 7)
		tt1 := ff + d + (ss1 ^ bits.RotateLeft32(a, 12)) + (w[i] ^ w[i+4])
		tt2 := gg + h + ss1 + w[i]
		d, c, b, a = c, bits.RotateLeft32(b, 9), a, tt1
		h, g, f = g, bits.RotateLeft32(f, 19), e
		e = tt2 ^ bits.RotateLeft32(tt2, 9) ^ bits.RotateLeft32(tt2, 17)
	}
	for i, x := range [8]uint32{a, b, c, d, e, f, g, h} {
		s.v[i] ^= x
	}
}
