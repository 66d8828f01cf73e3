// Package extract takes reference values out of what suppliers publish: SWID tags and reference integrity manifests, CoRIMs,
// in-toto provenance, and the plain JSON of upstream's sample type (attestation-service.md section 9.2).
//
// The names of values are upstream's. What upstream leaves out is checked here: signatures, under trust anchors that the operator
// configured and never under keys that came along, and times. An extractor says who signed; whether something unsigned is
// taken is for the caller to decide, who knows who sent it.
package extract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Unsigned is the signer of values that nobody signed, or whose signature there is no trust anchor for.
const Unsigned = "unsigned"

// MaxPayload is the size of the largest payload read, in bytes. Some types have lower bounds.
const MaxPayload = 4 << 20

// Values is what an extractor found.
type Values struct {
	// Named are the values, JSON by name.
	Named map[string]json.RawMessage
	// Signer is the subject of the certificate, or the digest of the key, that vouches for the values; else Unsigned.
	Signer string
	// NotAfter is when the document itself says that its values end; zero when it does not.
	NotAfter time.Time
}

// Types lists the message types, in order.
func Types() []string { return []string{"corim", "in-toto", "sample", "swid"} }

// Extract reads a payload of a type. A nil Trust has no anchors.
func (t *Trust) Extract(kind string, payload []byte, now time.Time) (*Values, error) {
	if t == nil {
		t = &Trust{}
	}
	if !slices.Contains(Types(), kind) {
		return nil, fmt.Errorf("reference value message has type %.64q, known: %s", kind, strings.Join(Types(), ", "))
	}
	v, err := t.extract(kind, payload, now)
	if err != nil {
		return nil, fmt.Errorf("reading reference values of type %q: %w", kind, err)
	}
	if len(v.Named) == 0 {
		return nil, fmt.Errorf("reading reference values of type %q: payload names no value", kind)
	}
	return v, nil
}

func (t *Trust) extract(kind string, payload []byte, now time.Time) (*Values, error) {
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("payload has %d bytes, at most %d are read", len(payload), MaxPayload)
	}
	switch kind {
	case "corim":
		return t.corim(payload, now)
	case "in-toto":
		return t.inToto(payload, now)
	case "swid":
		return t.swid(payload, now)
	}
	return sample(payload)
}

// sample reads a JSON object whose members are the values. A name that occurs twice is refused: which of the two is meant
// depends on the reader.
func sample(payload []byte) (*Values, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') || !utf8.Valid(payload) {
		return nil, errors.Join(errors.New("payload is not a JSON object"), err)
	}
	named := map[string]json.RawMessage{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("payload is not a JSON object: %w", err)
		}
		name, ok := tok.(string)
		if !ok {
			return nil, errors.New("payload is not a JSON object")
		}
		if _, twice := named[name]; twice {
			return nil, fmt.Errorf("payload names %.128q twice", name)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("payload is not a JSON object: value of %.128q: %w", name, err)
		}
		named[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("payload is not a JSON object: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("payload has more than a JSON object")
	}
	return &Values{Named: named, Signer: Unsigned}, nil
}

func encode(v any) (json.RawMessage, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding value: %w", err)
	}
	return raw, nil
}
