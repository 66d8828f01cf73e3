package quote

import (
	"encoding/binary"
	"fmt"
)

// reader consumes little-endian fields and remembers the first failure, so that a layout reads as a list of fields.
type reader struct {
	buf []byte
	err error
}

func (r *reader) take(field string, n uint32) []byte {
	if r.err != nil {
		return nil
	}
	if uint64(n) > uint64(len(r.buf)) {
		r.err = fmt.Errorf("%s needs %d bytes, %d are left", field, n, len(r.buf))
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) u16(field string) uint16 {
	if b := r.take(field, 2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32(field string) uint32 {
	if b := r.take(field, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// end reports the first failure, or bytes left over in what.
func (r *reader) end(what string) error {
	if r.err == nil && len(r.buf) != 0 {
		r.err = fmt.Errorf("%d bytes are left over at the end of %s", len(r.buf), what)
	}
	return r.err
}
