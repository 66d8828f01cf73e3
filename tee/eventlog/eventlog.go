// Package eventlog reads TCG event logs: the TPM log of a measured boot and
// the CCEL of a TEE, in the old SHA-1 form and the crypto-agile form, with the
// runtime events a guest appends (AAEL).
//
// A log proves nothing by itself. Its worth is that replaying it must give the
// register values a quote signs; Replay does that part. The parser takes
// hostile bytes: sizes are checked against what is left and nothing is
// allocated from a length that was read. Integers are little-endian.
package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// MaxSize bounds the logs Parse accepts; firmware reserves 64 KiB to 1 MiB.
	MaxSize = 16 << 20

	maxAlgs     = 16
	maxEvents   = 1 << 16
	legacyHead  = 4 + 4 + 20 + 4
	specIDFixed = 24 // signature, platform class and version, before the algorithm count
)

// Digest is one digest of an event.
type Digest struct {
	Alg Alg
	Sum []byte
}

// Event is one measurement. Slices point into the parsed log.
type Event struct {
	Index   uint32 // PCR, or CC measurement register
	Type    Type
	Digests []Digest
	Data    []byte
}

// Digest returns the event's digest of one algorithm, nil when it has none.
func (e *Event) Digest(alg Alg) []byte {
	for _, d := range e.Digests {
		if d.Alg == alg {
			return d.Sum
		}
	}
	return nil
}

// DigestsMatchData reports whether every digest is the hash of the event data.
// That holds for some event types only: others describe what was hashed.
func (e *Event) DigestsMatchData() bool {
	for _, d := range e.Digests {
		if !bytes.Equal(d.Alg.Sum(e.Data), d.Sum) {
			return false
		}
	}
	return true
}

// Log is a parsed event log. Events holds every record, the Spec ID header of
// the crypto-agile form included.
type Log struct {
	CryptoAgile     bool
	Algs            []Alg
	Events          []Event
	StartupLocality byte // start value of PCR 0, from the log
}

// Parse reads a log up to its end: the end of the bytes, a record index of
// 0xFFFFFFFF, or an all-zero record. What follows an end mark is not looked at.
func Parse(b []byte) (*Log, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("parsing event log: %d bytes exceed the limit of %d", len(b), MaxSize)
	}
	c := &cursor{buf: b}
	if c.atEnd(legacyHead) {
		return nil, errors.New("parsing event log: it has no events")
	}
	first, err := c.legacy()
	if err != nil {
		return nil, fmt.Errorf("parsing event log: header event: %w", err)
	}
	l := &Log{Algs: []Alg{SHA1}, Events: []Event{first}}
	l.StartupLocality, _ = startupLocality(first)
	var sizes map[Alg]int
	if isSpecID(first) {
		l.CryptoAgile = true
		if l.Algs, sizes, err = parseSpecID(first.Data); err != nil {
			return nil, fmt.Errorf("parsing event log: Spec ID event: %w", err)
		}
	}
	for {
		var e Event
		if l.CryptoAgile {
			if c.atEnd(12) {
				break
			}
			e, err = c.agile(sizes)
		} else {
			if c.atEnd(legacyHead) {
				break
			}
			e, err = c.legacy()
		}
		if err != nil {
			return nil, fmt.Errorf("parsing event log: event %d at offset %d: %w", len(l.Events), c.off, err)
		}
		if len(l.Events) == maxEvents {
			return nil, fmt.Errorf("parsing event log: more than %d events", maxEvents)
		}
		if loc, ok := startupLocality(e); ok {
			l.StartupLocality = loc
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// startupLocality reads the event by which firmware tells PCR 0's start value.
func startupLocality(e Event) (byte, bool) {
	const sig = "StartupLocality\x00"
	if e.Type != NoAction || e.Index != 0 || len(e.Data) != len(sig)+1 || string(e.Data[:len(sig)]) != sig {
		return 0, false
	}
	return e.Data[len(sig)], true
}

// isSpecID recognises the header of a crypto-agile log: the TCG's signature,
// or the 24 zero bytes that CoCo guests write when there is no CCEL.
func isSpecID(e Event) bool {
	if e.Type != NoAction || len(e.Data) < specIDFixed+4+1 {
		return false
	}
	return bytes.HasPrefix(e.Data, []byte("Spec ID Event03\x00")) ||
		bytes.Equal(e.Data[:specIDFixed], make([]byte, specIDFixed))
}

func parseSpecID(data []byte) ([]Alg, map[Alg]int, error) {
	le := binary.LittleEndian
	n := le.Uint32(data[specIDFixed:])
	rest := data[specIDFixed+4:]
	if n == 0 || n > maxAlgs {
		return nil, nil, fmt.Errorf("%d hash algorithms, expected 1 to %d", n, maxAlgs)
	}
	if len(rest) < 4*int(n)+1 {
		return nil, nil, fmt.Errorf("%d hash algorithms do not fit in %d bytes", n, len(rest))
	}
	var algs []Alg
	sizes := make(map[Alg]int, n)
	for i := range int(n) {
		alg, size := Alg(le.Uint16(rest[4*i:])), int(le.Uint16(rest[4*i+2:]))
		if h := alg.New(); h != nil && h.Size() != size {
			return nil, nil, fmt.Errorf("%v has digests of %d bytes, expected %d", alg, size, h.Size())
		}
		if _, dup := sizes[alg]; dup {
			return nil, nil, fmt.Errorf("%v is listed twice", alg)
		}
		if size == 0 || size > 64 {
			return nil, nil, fmt.Errorf("%v has digests of %d bytes, expected 1 to 64", alg, size)
		}
		algs, sizes[alg] = append(algs, alg), size
	}
	rest = rest[4*n:]
	if vendor := int(rest[0]); vendor != len(rest)-1 {
		return nil, nil, fmt.Errorf("vendor data is %d bytes, its size says %d", len(rest)-1, vendor)
	}
	return algs, sizes, nil
}

// cursor walks the records.
type cursor struct {
	buf []byte
	off int
}

// atEnd recognises the end of a log; zeros is the size of a record's fixed
// part, which is all zero in zero padding.
func (c *cursor) atEnd(zeros int) bool {
	b := c.buf[c.off:]
	if len(b) == 0 {
		return true
	}
	if len(b) >= 4 && binary.LittleEndian.Uint32(b) == 0xffffffff {
		return true
	}
	b = b[:min(len(b), zeros)]
	return bytes.Equal(b, make([]byte, len(b)))
}

func (c *cursor) take(n int) ([]byte, error) {
	if left := len(c.buf) - c.off; n < 0 || n > left {
		return nil, fmt.Errorf("%d bytes needed, %d are left", n, left)
	}
	b := c.buf[c.off : c.off+n : c.off+n]
	c.off += n
	return b, nil
}

func (c *cursor) legacy() (Event, error) {
	h, err := c.take(legacyHead)
	if err != nil {
		return Event{}, err
	}
	le := binary.LittleEndian
	e := Event{Index: le.Uint32(h), Type: Type(le.Uint32(h[4:])), Digests: []Digest{{SHA1, h[8:28]}}}
	if e.Data, err = c.data(le.Uint32(h[28:])); err != nil {
		return Event{}, err
	}
	return e, nil
}

func (c *cursor) agile(sizes map[Alg]int) (Event, error) {
	h, err := c.take(12)
	if err != nil {
		return Event{}, err
	}
	le := binary.LittleEndian
	e := Event{Index: le.Uint32(h), Type: Type(le.Uint32(h[4:]))}
	n := le.Uint32(h[8:])
	if n > maxAlgs {
		return Event{}, fmt.Errorf("%d digests, expected at most %d", n, maxAlgs)
	}
	for range n {
		id, err := c.take(2)
		if err != nil {
			return Event{}, fmt.Errorf("digest algorithm: %w", err)
		}
		alg := Alg(le.Uint16(id))
		size, ok := sizes[alg]
		if !ok {
			return Event{}, fmt.Errorf("digest algorithm %v is not in the Spec ID event", alg)
		}
		if e.Digest(alg) != nil {
			return Event{}, fmt.Errorf("two %v digests", alg)
		}
		sum, err := c.take(size)
		if err != nil {
			return Event{}, fmt.Errorf("%v digest: %w", alg, err)
		}
		e.Digests = append(e.Digests, Digest{alg, sum})
	}
	size, err := c.take(4)
	if err != nil {
		return Event{}, fmt.Errorf("data size: %w", err)
	}
	if e.Data, err = c.data(le.Uint32(size)); err != nil {
		return Event{}, err
	}
	return e, nil
}

func (c *cursor) data(size uint32) ([]byte, error) {
	if uint64(size) > uint64(len(c.buf)-c.off) {
		return nil, fmt.Errorf("event data of %d bytes, %d are left", size, len(c.buf)-c.off)
	}
	return c.take(int(size))
}
