package tpm

import (
	"encoding/binary"
	"fmt"
)

// maxInput bounds every structure this package reads. The largest real one,
// a quote over several banks, stays far below it.
const maxInput = 8 << 10

// reader consumes big-endian fields and remembers the first failure, so that
// a layout reads as a list of fields.
type reader struct {
	what string
	buf  []byte
	err  error
}

func newReader(what string, b []byte) *reader {
	r := &reader{what: what, buf: b}
	if len(b) > maxInput {
		r.err = fmt.Errorf("parsing %s: %d bytes exceed the limit of %d", what, len(b), maxInput)
	}
	return r
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("parsing %s: %w", r.what, fmt.Errorf(format, args...))
	}
}

func (r *reader) take(field string, n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.buf) {
		r.fail("%s needs %d bytes, %d are left", field, n, len(r.buf))
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) u8(field string) uint8 {
	if b := r.take(field, 1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16(field string) uint16 {
	if b := r.take(field, 2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32(field string) uint32 {
	if b := r.take(field, 4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64(field string) uint64 {
	if b := r.take(field, 8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized reads a TPM2B: a 16-bit length and that many bytes, at most limit.
func (r *reader) sized(field string, limit int) []byte {
	n := int(r.u16(field + " size"))
	if r.err == nil && n > limit {
		r.fail("%s is %d bytes, more than %d", field, n, limit)
		return nil
	}
	return r.take(field, n)
}

// end reports the first failure, or bytes left over.
func (r *reader) end() error {
	if r.err == nil && len(r.buf) != 0 {
		r.fail("%d bytes left over", len(r.buf))
	}
	return r.err
}
