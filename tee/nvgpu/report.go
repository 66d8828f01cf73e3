// Package nvgpu reads the attestation report of an NVIDIA GPU or NVSwitch: an SPDM 1.1 GET_MEASUREMENTS request followed
// by its response (DMTF DSP0274, spec evidence-layouts.md section 9).
//
// Parse is strict: lengths must add up, a measurement index and an opaque field occur once, only requests for all
// measurements with a signature are read. It verifies nothing; Signed and Signature are what a verifier needs.
package nvgpu

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes.
const (
	// MaxReport bounds a report: the largest seen has 4274 bytes, the opaque length field ends at 64 KiB.
	MaxReport = 128 << 10
	// NonceSize is the size of the nonces of requester and responder.
	NonceSize = 32
	// SignatureSize is r then s of ECDSA P-384, each 48 bytes, big-endian.
	SignatureSize = 96

	requestSize = 37
	// responseHead is everything of a response before its measurement record.
	responseHead = 8
	blockHead    = 4
	dmtfHead     = 3
	maxValue     = 64
	// maxTrailing is how much may follow the signature: one real report has a byte of padding there.
	maxTrailing = 1
)

const (
	spdmVersion     = 0x11
	codeRequest     = 0xE0
	codeResponse    = 0x60
	withSignature   = 0x01
	allMeasurements = 0xFF
	specDMTF        = 1
)

// Measurement is one DMTF measurement block.
type Measurement struct {
	// Index is the number of the measurement, 1 to 64 on GPUs.
	Index uint8
	// Type is DMTFSpecMeasurementValueType: bit 7 tells raw bytes from a digest.
	Type uint8
	// Value is 48 bytes of SHA-384 on all devices known.
	Value []byte
}

// Report is a request and its response. Slices refer to the bytes given to Parse.
type Report struct {
	// Nonce is the requester's, which binds the report to a session.
	Nonce [NonceSize]byte
	// Slot is the certificate slot that was asked to sign.
	Slot uint8
	// Measurements are in the order of the record.
	Measurements []Measurement
	// ResponderNonce is the device's.
	ResponderNonce [NonceSize]byte
	// Opaque are NVIDIA's fields about the device, in the order of the report.
	Opaque []Field
	// Signed is what the signature is over: request and response without the signature.
	Signed []byte
	// Signature is r and s.
	Signature [SignatureSize]byte
	// Trailing is the number of bytes after the signature, which nothing protects.
	Trailing int
}

// Measurement returns the value of an index.
func (r *Report) Measurement(index int) ([]byte, bool) {
	for _, m := range r.Measurements {
		if int(m.Index) == index {
			return m.Value, true
		}
	}
	return nil, false
}

// Parse reads a report.
func Parse(data []byte) (*Report, error) {
	if len(data) > MaxReport {
		return nil, fmt.Errorf("report has %d bytes, at most %d are read", len(data), MaxReport)
	}
	if len(data) < requestSize+responseHead {
		return nil, fmt.Errorf("report has %d bytes, request and head of the response take %d", len(data), requestSize+responseHead)
	}
	var r Report
	if err := r.request(data[:requestSize]); err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if err := r.response(data); err != nil {
		return nil, fmt.Errorf("reading the response: %w", err)
	}
	return &r, nil
}

func (r *Report) request(b []byte) error {
	switch {
	case b[0] != spdmVersion:
		return fmt.Errorf("SPDM version is %#x, want %#x", b[0], spdmVersion)
	case b[1] != codeRequest:
		return fmt.Errorf("code is %#x, want GET_MEASUREMENTS (%#x)", b[1], codeRequest)
	case b[2]&withSignature == 0:
		return errors.New("no signature was asked for (param1 bit 0)")
	case b[3] != allMeasurements:
		return fmt.Errorf("measurement %#x was asked for, want all (%#x)", b[3], allMeasurements)
	}
	copy(r.Nonce[:], b[4:36])
	r.Slot = b[36]
	return nil
}

func (r *Report) response(data []byte) error {
	b := data[requestSize:]
	switch {
	case b[0] != spdmVersion:
		return fmt.Errorf("SPDM version is %#x, want %#x", b[0], spdmVersion)
	case b[1] != codeResponse:
		return fmt.Errorf("code is %#x, want MEASUREMENTS (%#x)", b[1], codeResponse)
	case b[3]&0x0F != r.Slot&0x0F:
		return fmt.Errorf("slot %d answers, slot %d was asked", b[3]&0x0F, r.Slot&0x0F)
	}
	blocks := int(b[4])
	record := int(b[5]) | int(b[6])<<8 | int(b[7])<<16
	b = b[responseHead:]
	if record > len(b) {
		return fmt.Errorf("measurement record has %d bytes, %d are left", record, len(b))
	}
	if err := r.record(b[:record], blocks); err != nil {
		return fmt.Errorf("measurement record: %w", err)
	}
	b = b[record:]
	if len(b) < NonceSize+2 {
		return fmt.Errorf("%d bytes are left, nonce and opaque length take %d", len(b), NonceSize+2)
	}
	copy(r.ResponderNonce[:], b)
	opaque := int(binary.LittleEndian.Uint16(b[NonceSize:]))
	b = b[NonceSize+2:]
	if opaque > len(b) {
		return fmt.Errorf("opaque data has %d bytes, %d are left", opaque, len(b))
	}
	var err error
	if r.Opaque, err = parseFields(b[:opaque]); err != nil {
		return fmt.Errorf("opaque data: %w", err)
	}
	b = b[opaque:]
	if len(b) < SignatureSize || len(b) > SignatureSize+maxTrailing {
		return fmt.Errorf("%d bytes are left for the signature, want %d and at most %d of padding", len(b), SignatureSize, maxTrailing)
	}
	copy(r.Signature[:], b)
	r.Trailing = len(b) - SignatureSize
	r.Signed = data[:len(data)-len(b)]
	return nil
}

func (r *Report) record(b []byte, blocks int) error {
	var seen [256]bool
	r.Measurements = make([]Measurement, 0, blocks)
	for i := range blocks {
		if len(b) < blockHead+dmtfHead {
			return fmt.Errorf("block %d of %d: %d bytes are left, want %d", i+1, blocks, len(b), blockHead+dmtfHead)
		}
		m := Measurement{Index: b[0], Type: b[4]}
		size, value := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[5:]))
		switch {
		case b[1] != specDMTF:
			return fmt.Errorf("block %d: specification is %#x, want DMTF (%#x)", i+1, b[1], specDMTF)
		case value > maxValue:
			return fmt.Errorf("block %d: value has %d bytes, at most %d are read", i+1, value, maxValue)
		case size != dmtfHead+value:
			return fmt.Errorf("block %d: size is %d, its value of %d bytes makes %d", i+1, size, value, dmtfHead+value)
		case len(b) < blockHead+size:
			return fmt.Errorf("block %d: %d bytes are left, want %d", i+1, len(b), blockHead+size)
		case seen[m.Index]:
			return fmt.Errorf("block %d: index %d occurs twice", i+1, m.Index)
		}
		seen[m.Index] = true
		m.Value = b[blockHead+dmtfHead : blockHead+size]
		r.Measurements = append(r.Measurements, m)
		b = b[blockHead+size:]
	}
	if len(b) != 0 {
		return fmt.Errorf("%d bytes follow the last of %d blocks", len(b), blocks)
	}
	return nil
}
