package corim

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// contentTypes are those of a signed CoRIM: that of the draft, and that of its older versions.
var contentTypes = map[string]bool{"application/rim+cbor": true, "application/corim-unsigned+cbor": true}

type protected struct {
	ContentType cbor.RawMessage `cbor:"3,keyasint"`
	Meta        []byte          `cbor:"8,keyasint"`
	CWT         *struct {
		Expires   epoch `cbor:"4,keyasint"`
		NotBefore epoch `cbor:"5,keyasint"`
	} `cbor:"15,keyasint"`
}

type meta struct {
	Validity *validityMap `cbor:"1,keyasint"`
}

// ParseProtected reads what the protected header of a signed CoRIM, a map, says of the signature: that it is over a CoRIM, and
// when it is valid (corim-meta or CWT claims, as the drafts have it).
func ParseProtected(header []byte) (Validity, error) {
	var v Validity
	if len(header) > MaxDocument {
		return v, fmt.Errorf("protected header has %d bytes, at most %d are read", len(header), MaxDocument)
	}
	dec, err := decoder()
	if err != nil {
		return v, err
	}
	var p protected
	if err := dec.Unmarshal(header, &p); err != nil {
		return v, fmt.Errorf("reading protected header: %w", err)
	}
	if p.ContentType != nil {
		var text string
		if err := dec.Unmarshal(p.ContentType, &text); err != nil {
			return v, fmt.Errorf("content type is no text: %w", err)
		}
		if !contentTypes[text] {
			return v, fmt.Errorf("content type is %.64q, want application/rim+cbor", text)
		}
	}
	if p.Meta != nil {
		var m meta
		if err := dec.Unmarshal(p.Meta, &m); err != nil {
			return v, fmt.Errorf("reading corim-meta: %w", err)
		}
		v = m.Validity.span()
	}
	if p.CWT != nil {
		v = v.Within(Validity{NotBefore: p.CWT.NotBefore.Time, NotAfter: p.CWT.Expires.Time})
	}
	return v, nil
}

// epoch is a time: seconds since 1970, with tag 1 or without.
type epoch struct{ time.Time }

const maxEpoch = 253402300799 // the last second of the year 9999

// UnmarshalCBOR reads a time. Numbers that are none, which the library would read as no time at all, are refused: a
// bound that cannot be read is not the absence of a bound.
func (e *epoch) UnmarshalCBOR(data []byte) error {
	if len(data) > 0 && data[0]>>5 == 6 {
		var tag cbor.RawTag
		if err := cbor.Unmarshal(data, &tag); err != nil {
			return err
		}
		if tag.Number != tagEpoch {
			return fmt.Errorf("time has tag %d, want %d", tag.Number, tagEpoch)
		}
		data = tag.Content
	}
	if len(data) == 0 || data[0]>>5 == 7 && (data[0] < 0xf9 || data[0] > 0xfb) {
		return errors.New("time is not a number")
	}
	var f float64
	if err := cbor.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("time is not a number: %w", err)
	}
	if math.IsNaN(f) || f < 1 || f > maxEpoch {
		return fmt.Errorf("time is %v seconds, want 1 to %d", f, maxEpoch)
	}
	e.Time = time.Unix(int64(f), 0).UTC()
	return nil
}
