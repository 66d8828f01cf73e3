// Package pair computes SHA-256 of two messages of the same length at a time, for processors with the SHA extensions of x86. Each
// round waits for the one before, so that one message leaves half of such a processor's unit idle.
package pair

import "encoding/binary"

// maxPrefix is the longest prefix in bytes: the longest salt of dm-verity.
const maxPrefix = 256

// initial is FIPS 180-4, 5.3.3, in the order of blocks.
var initial = [4][4]uint32{
	{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667}, {0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372},
	{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667}, {0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372},
}

// Sum writes the digests of prefix‖a and prefix‖b to the 64 bytes of dst. a and b have the same length, at least 64 bytes; the
// prefix has at most 256. Available must hold.
func Sum(dst, prefix, a, b []byte) {
	_ = dst[63]
	if len(a) != len(b) || len(a) < 64 || len(prefix) > maxPrefix {
		panic("pair: messages of unequal or wrong length")
	}
	state := initial
	// Whole blocks with the prefix and what is missing of the messages.
	fill := -len(prefix) & 63
	if len(prefix) > 0 {
		var head [2][maxPrefix]byte
		n := copy(head[0][:], prefix)
		copy(head[0][n:], a[:fill])
		copy(head[1][:], prefix)
		copy(head[1][n:], b[:fill])
		blocks(&state, &head[0][0], &head[1][0], (n+fill)/64)
	}
	a0, b0 := a[fill:], b[fill:]
	whole := len(a0) &^ 63
	if whole > 0 {
		blocks(&state, &a0[0], &b0[0], whole/64)
	}
	// The rest and the padding: one bit, zeros, and the length in bits.
	var last [2][128]byte
	n := copy(last[0][:], a0[whole:])
	copy(last[1][:], b0[whole:])
	last[0][n], last[1][n] = 0x80, 0x80
	end := 64
	if n >= 56 {
		end = 128
	}
	bits := uint64(len(prefix)+len(a)) * 8
	binary.BigEndian.PutUint64(last[0][end-8:], bits)
	binary.BigEndian.PutUint64(last[1][end-8:], bits)
	blocks(&state, &last[0][0], &last[1][0], end/64)
	for i := range 2 {
		low, high := &state[2*i], &state[2*i+1]
		for n, word := range [8]uint32{low[3], low[2], high[3], high[2], low[1], low[0], high[1], high[0]} {
			binary.BigEndian.PutUint32(dst[32*i+4*n:], word)
		}
	}
}
