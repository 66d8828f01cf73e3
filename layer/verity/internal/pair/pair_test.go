package pair

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

func TestSum(t *testing.T) {
	if !Available() {
		needs.Optional(t, "the processor has no SHA extensions")
	}
	random := rand.NewChaCha8([32]byte{1})
	for prefix := range maxPrefix + 1 {
		for _, size := range []int{64, 100, 119, 120, 127, 128, 512, 1024, 4096, 4096 + prefix} {
			p, a, b := make([]byte, prefix), make([]byte, size), make([]byte, size)
			random.Read(p)
			random.Read(a)
			random.Read(b)
			var got [64]byte
			Sum(got[:], p, a, b)
			first, second := sha256.Sum256(append(bytes.Clone(p), a...)), sha256.Sum256(append(bytes.Clone(p), b...))
			if !bytes.Equal(got[:32], first[:]) || !bytes.Equal(got[32:], second[:]) {
				t.Fatalf("prefix of %d bytes, messages of %d: %x, want %x %x", prefix, size, got, first, second)
			}
		}
	}
}

func BenchmarkSum(b *testing.B) {
	if !Available() {
		needs.Optional(b, "the processor has no SHA extensions")
	}
	data, salt := make([]byte, 8192), make([]byte, 32)
	var dst [64]byte
	b.SetBytes(8192)
	for b.Loop() {
		Sum(dst[:], salt, data[:4096], data[4096:])
	}
}

func BenchmarkStandard(b *testing.B) {
	data, salt := make([]byte, 8192), make([]byte, 32)
	var dst [64]byte
	h := sha256.New()
	b.SetBytes(8192)
	for b.Loop() {
		for i := range 2 {
			h.Reset()
			h.Write(salt)
			h.Write(data[4096*i:][:4096])
			h.Sum(dst[:0])
		}
	}
}
