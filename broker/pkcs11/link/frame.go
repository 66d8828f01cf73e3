// Package link is what the broker and its helper cloister-pkcs11 say to each other over a private socket.
//
// A message is a frame: its length (4 bytes, big endian, without itself), an id (8), a code (1), a number of fields (1) and
// each field with its length (4). The broker asks with a number of its own as id and an Op as code; the helper answers with
// the same id and a Status, in any order. Id 0 is what the helper says by itself: StatusLogin before it gives the PIN to the
// token, then StatusOK when it is ready, or why it cannot be. Both sides hold the other one to the bounds below.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// MaxValue bounds a secret, a key and what is encrypted, in bytes.
	MaxValue = 64 << 10
	// MaxLabel bounds the label of an object; a resource path has at most 770 bytes.
	MaxLabel = 1024
	// MaxFrame bounds a frame without its length: a wrapped value of the greatest size and everything beside it.
	MaxFrame = MaxValue + 8<<10
	// MaxFields bounds the fields of a frame.
	MaxFields = 4

	headSize = 8 + 1 + 1
)

// ErrFrame is wrapped by errors about bytes that are no frame; nothing that follows them can be trusted.
var ErrFrame = errors.New("not a message of cloister-pkcs11")

// Frame is a message.
type Frame struct {
	ID     uint64
	Code   byte
	Fields [][]byte
}

// Clear overwrites the fields.
func (f Frame) Clear() {
	for _, b := range f.Fields {
		clear(b)
	}
}

// Write sends a frame with one write, and overwrites its copy of the fields afterwards.
func Write(w io.Writer, f Frame) error {
	if len(f.Fields) > MaxFields {
		return fmt.Errorf("a frame has %d fields, at most %d are sent: %w", len(f.Fields), MaxFields, ErrFrame)
	}
	size := headSize
	for _, b := range f.Fields {
		if len(b) > MaxFrame { // so that the sum cannot overflow
			return fmt.Errorf("a field has %d bytes: %w", len(b), ErrFrame)
		}
		size += 4 + len(b)
	}
	if size > MaxFrame {
		return fmt.Errorf("a frame has %d bytes, at most %d are sent: %w", size, MaxFrame, ErrFrame)
	}
	out := make([]byte, 0, 4+size)
	out = binary.BigEndian.AppendUint32(out, uint32(size))
	out = binary.BigEndian.AppendUint64(out, f.ID)
	out = append(out, f.Code, byte(len(f.Fields)))
	for _, b := range f.Fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	defer clear(out)
	_, err := w.Write(out)
	return err
}

// Read takes a frame. It returns io.EOF when there is none, and never holds more than MaxFrame bytes.
func Read(r io.Reader) (Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < headSize || size > MaxFrame {
		return Frame{}, fmt.Errorf("a frame claims %d bytes, want %d to %d: %w", size, headSize, MaxFrame, ErrFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return parse(body)
}

// parse takes a frame without its length. The fields are parts of body.
func parse(body []byte) (Frame, error) {
	if len(body) < headSize {
		return Frame{}, fmt.Errorf("a frame has %d bytes: %w", len(body), ErrFrame)
	}
	f := Frame{ID: binary.BigEndian.Uint64(body), Code: body[8]}
	count, rest := int(body[9]), body[headSize:]
	if count > MaxFields {
		return Frame{}, fmt.Errorf("a frame claims %d fields, at most %d are taken: %w", count, MaxFields, ErrFrame)
	}
	for i := range count {
		if len(rest) < 4 {
			return Frame{}, fmt.Errorf("field %d has no length: %w", i, ErrFrame)
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if uint64(n) > uint64(len(rest)) {
			return Frame{}, fmt.Errorf("field %d claims %d bytes, %d are left: %w", i, n, len(rest), ErrFrame)
		}
		f.Fields = append(f.Fields, rest[:n:n])
		rest = rest[n:]
	}
	if len(rest) > 0 {
		return Frame{}, fmt.Errorf("%d bytes follow the last field: %w", len(rest), ErrFrame)
	}
	return f, nil
}
