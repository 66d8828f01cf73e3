// Package corim reads concise reference integrity manifests (CoRIM, draft-ietf-rats-corim): CBOR documents whose CoMID tags list
// the measurements that a component may have.
//
// The package reads; it verifies no signature. Of a CoMID it reads the reference triples alone, and of those the environment's
// class and the digests and raw bytes of a measurement, which is what reference values are made of (spec
// attestation-service.md section 9.2). Everything is bounded, and members that occur twice are refused.
package corim

import (
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Bounds of a document.
const (
	// MaxDocument is the size of the largest document read, in bytes.
	MaxDocument     = 1 << 20
	maxTags         = 256
	maxMeasurements = 4096
	maxDigests      = 64
	maxDigest       = 128
	maxRaw          = 16 << 10
	maxText         = 256
	maxWrappings    = 4
)

// CBOR tags of the outer layers and of what a CoRIM holds.
const (
	tagEpoch    = 1
	tagSign1    = 18
	tagUUID     = 37
	tagCoRIM    = 500 // concise-rim-type-choice of older drafts
	tagUnsigned = 501
	tagSigned   = 502
	tagCoMID    = 506
	tagBytes    = 560
)

// Document is what a CoRIM says.
type Document struct {
	// Validity is when the manifest may be relied on; zero times are no bound.
	Validity
	// Measurements are in the order of the document.
	Measurements []Measurement
}

// Validity is a span of time; a zero time is no bound.
type Validity struct {
	NotBefore, NotAfter time.Time
}

// Within returns the span in which both hold.
func (v Validity) Within(o Validity) Validity {
	if o.NotBefore.After(v.NotBefore) {
		v.NotBefore = o.NotBefore
	}
	if v.NotAfter.IsZero() || !o.NotAfter.IsZero() && o.NotAfter.Before(v.NotAfter) {
		v.NotAfter = o.NotAfter
	}
	return v
}

// Check tells whether the span has now in it.
func (v Validity) Check(now time.Time) error {
	switch {
	case !v.NotBefore.IsZero() && now.Before(v.NotBefore):
		return fmt.Errorf("it is valid from %s, now is %s", v.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !v.NotAfter.IsZero() && !now.Before(v.NotAfter):
		return fmt.Errorf("it was valid until %s, now is %s", v.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

type corimMap struct {
	Tags     []cbor.RawMessage `cbor:"1,keyasint"`
	Validity *validityMap      `cbor:"4,keyasint"`
}

type validityMap struct {
	NotBefore epoch `cbor:"0,keyasint"`
	NotAfter  epoch `cbor:"1,keyasint"`
}

func (v *validityMap) span() Validity {
	if v == nil {
		return Validity{}
	}
	return Validity{NotBefore: v.NotBefore.Time, NotAfter: v.NotAfter.Time}
}

func decoder() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 16, MaxArrayElements: maxMeasurements, MaxMapPairs: 256,
		ByteStringToString: cbor.ByteStringToStringForbidden, UTF8: cbor.UTF8RejectInvalid,
	}.DecMode()
}

// Unwrap takes the outer tags off a document and tells whether a COSE_Sign1 is in them. What it returns is the untagged
// COSE_Sign1 or the untagged CoRIM.
func Unwrap(data []byte) (inner []byte, signed bool, err error) {
	if len(data) > MaxDocument {
		return nil, false, fmt.Errorf("CoRIM has %d bytes, at most %d are read", len(data), MaxDocument)
	}
	dec, err := decoder()
	if err != nil {
		return nil, false, err
	}
	for range maxWrappings {
		if len(data) == 0 || data[0]>>5 != 6 {
			break
		}
		var tag cbor.RawTag
		if err := dec.Unmarshal(data, &tag); err != nil {
			return nil, false, fmt.Errorf("reading CoRIM: %w", err)
		}
		switch tag.Number {
		case tagCoRIM, tagUnsigned:
			if signed {
				return nil, false, fmt.Errorf("CoRIM has tag %d within its signature's", tag.Number)
			}
		case tagSigned, tagSign1:
			signed = true
		default:
			return nil, false, fmt.Errorf("CoRIM has tag %d, want %d, %d, %d or %d", tag.Number, tagCoRIM, tagUnsigned, tagSigned, tagSign1)
		}
		data = tag.Content
	}
	want, what := byte(5), "map"
	if signed {
		want, what = 4, "COSE_Sign1 array"
	}
	if len(data) == 0 || data[0]>>5 != want {
		return nil, false, fmt.Errorf("CoRIM is no %s under its tags", what)
	}
	return data, signed, nil
}

// Parse reads an unsigned CoRIM, or the payload of a signed one.
func Parse(data []byte) (*Document, error) {
	data, signed, err := Unwrap(data)
	if err != nil {
		return nil, err
	}
	if signed {
		return nil, errors.New("CoRIM is signed, want the payload of the signature")
	}
	dec, err := decoder()
	if err != nil {
		return nil, err
	}
	var m corimMap
	if err := dec.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("reading CoRIM: %w", err)
	}
	if len(m.Tags) == 0 || len(m.Tags) > maxTags {
		return nil, fmt.Errorf("CoRIM has %d tags, want 1 to %d", len(m.Tags), maxTags)
	}
	doc := &Document{Validity: m.Validity.span()}
	for i, raw := range m.Tags {
		body, ok, err := comidBytes(dec, raw)
		if err != nil {
			return nil, fmt.Errorf("tag %d: %w", i, err)
		}
		if !ok {
			continue
		}
		found, err := parseCoMID(dec, body)
		if err != nil {
			return nil, fmt.Errorf("CoMID in tag %d: %w", i, err)
		}
		if doc.Measurements = append(doc.Measurements, found...); len(doc.Measurements) > maxMeasurements {
			return nil, fmt.Errorf("CoRIM has more than %d measurements", maxMeasurements)
		}
	}
	return doc, nil
}

// comidBytes returns the encoded CoMID of a tag: tag 506 on bytes or, as some tools write it, bytes alone. Tags of other
// kinds (CoSWID, trust anchors) are not for us.
func comidBytes(dec cbor.DecMode, raw cbor.RawMessage) (body []byte, ok bool, err error) {
	if len(raw) > 0 && raw[0]>>5 == 6 {
		var tag cbor.RawTag
		if err := dec.Unmarshal(raw, &tag); err != nil {
			return nil, false, err
		}
		if tag.Number != tagCoMID {
			return nil, false, nil
		}
		raw = tag.Content
	}
	err = dec.Unmarshal(raw, &body)
	return body, err == nil, err
}
