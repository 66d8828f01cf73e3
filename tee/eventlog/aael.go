package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// aaelTag marks EV_EVENT_TAG data as an event of the Attestation Agent.
const aaelTag = 0x4141454C

// AAEL is a runtime event of the Attestation Agent.
type AAEL struct {
	Domain, Operation, Content string
}

// NewAAEL checks that the parts can be written and read back unambiguously:
// no white space in domain and operation, no line feed in the content, and
// nowhere a NUL, which some verifiers drop, so that other words would appear.
func NewAAEL(domain, operation, content string) (AAEL, error) {
	bad := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	switch {
	case domain == "" || strings.ContainsFunc(domain, bad):
		return AAEL{}, errors.New("event domain must be non-empty and without white space and control characters")
	case operation == "" || strings.ContainsFunc(operation, bad):
		return AAEL{}, errors.New("event operation must be non-empty and without white space and control characters")
	case strings.ContainsAny(content, "\n\x00"):
		return AAEL{}, errors.New("event content must not contain a line feed or a NUL")
	}
	return AAEL{domain, operation, content}, nil
}

// Text is the event as one line.
func (a AAEL) Text() string { return a.Domain + " " + a.Operation + " " + a.Content }

// Data is the event data that is measured: tag, length, text.
func (a AAEL) Data() []byte { return AAELData(a.Text()) }

// AAELData wraps a text line as the event data that is measured.
func AAELData(text string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aaelTag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// AAELRecord is the crypto-agile log record of event data in one register.
func AAELRecord(index uint32, alg Alg, data []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, index)
	b = le.AppendUint32(b, uint32(EventTag))
	b = le.AppendUint32(b, 1)
	b = le.AppendUint16(b, uint16(alg))
	b = append(b, alg.Sum(data)...)
	b = le.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseAAEL reads the runtime event an event carries. ok is false when it
// carries another kind of data.
func ParseAAEL(e *Event) (a AAEL, ok bool, err error) {
	le := binary.LittleEndian
	if e.Type != EventTag || len(e.Data) < 8 || le.Uint32(e.Data) != aaelTag {
		return AAEL{}, false, nil
	}
	if n := le.Uint32(e.Data[4:]); uint64(n) != uint64(len(e.Data)-8) {
		return AAEL{}, true, fmt.Errorf("parsing runtime event: length says %d, %d bytes follow", n, len(e.Data)-8)
	}
	parts := strings.SplitN(string(e.Data[8:]), " ", 3)
	if len(parts) != 3 {
		return AAEL{}, true, fmt.Errorf("parsing runtime event: %d words, expected domain, operation and content", len(parts))
	}
	return AAEL{parts[0], parts[1], parts[2]}, true, nil
}
