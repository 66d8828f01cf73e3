// Package se reads and writes what IBM Secure Execution attests with: evidence, image headers, attestation requests and the
// exchange files of pvattest. evidence-layouts.md section 7 has the layouts; integers are big-endian.
//
// There are no signatures in any of it. A measurement is an HMAC under a key that its requester made, see
// broker/verifier/se.
package se

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
)

// Sizes in bytes.
const (
	MeasurementSize    = 64
	MeasurementKeySize = 64
	NonceSize          = 16
	CUIDSize           = 16
	TagsSize           = 208
	HashSize           = 32
	MaxUserData        = 256

	maxEvidence   = 64 << 10
	maxAdditional = 4 << 10
	maxEncrypted  = 4 << 10
)

// Tags identify an image: digests over its pages, their addresses and tweaks, and the tag of its header.
type Tags struct {
	PageList, AddressList, TweakList [64]byte
	Tag                              [16]byte
}

// ParseTags reads the 208 bytes of image_hdr_tags.
func ParseTags(b []byte) (t Tags, err error) {
	if len(b) != TagsSize {
		return t, fmt.Errorf("parsing image header tags: %d bytes, expected %d", len(b), TagsSize)
	}
	copy(t.PageList[:], b)
	copy(t.AddressList[:], b[64:])
	copy(t.TweakList[:], b[128:])
	copy(t.Tag[:], b[192:])
	return t, nil
}

// Bytes is the inverse of ParseTags.
func (t Tags) Bytes() []byte {
	return slices.Concat(t.PageList[:], t.AddressList[:], t.TweakList[:], t.Tag[:])
}

// Evidence is what a guest sends.
type Evidence struct {
	Measurement    []byte
	AdditionalData []byte
	UserData       []byte
	CUID           []byte
	EncryptedKey   []byte // the measurement key as the challenge had it
	EncryptedNonce []byte // likewise
	Tags           Tags
}

// Challenge is what a guest is asked; guests add runtime_data_digest before they hand it on.
type Challenge struct {
	Request         []byte `json:"request_blob"`
	MeasurementSize uint32 `json:"measurement_size"`
	AdditionalSize  uint32 `json:"additional_size"`
	EncryptedKey    []byte `json:"encr_measurement_key"`
	EncryptedNonce  []byte `json:"encr_request_nonce"`
	Tags            []byte `json:"image_hdr_tags"`
}

// ParseEvidence reads the JSON of a guest.
func ParseEvidence(raw []byte) (*Evidence, error) {
	if len(raw) > maxEvidence {
		return nil, fmt.Errorf("parsing SE evidence: %d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var j struct {
		Measurement    string `json:"measurement"`
		AdditionalData string `json:"additional_data"`
		UserData       string `json:"user_data"`
		CUID           string `json:"cuid"`
		EncryptedKey   string `json:"encr_measurement_key"`
		EncryptedNonce string `json:"encr_request_nonce"`
		Tags           string `json:"image_hdr_tags"`
	}
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, fmt.Errorf("parsing SE evidence: %w", err)
	}
	var e Evidence
	var tags []byte
	for _, f := range []struct {
		name     string
		text     string
		to       *[]byte
		min, max int
	}{
		{"measurement", j.Measurement, &e.Measurement, MeasurementSize, MeasurementSize},
		{"additional_data", j.AdditionalData, &e.AdditionalData, 0, maxAdditional},
		{"user_data", j.UserData, &e.UserData, 0, MaxUserData},
		{"cuid", j.CUID, &e.CUID, CUIDSize, CUIDSize},
		{"encr_measurement_key", j.EncryptedKey, &e.EncryptedKey, 1, maxEncrypted},
		{"encr_request_nonce", j.EncryptedNonce, &e.EncryptedNonce, 1, maxEncrypted},
		{"image_hdr_tags", j.Tags, &tags, TagsSize, TagsSize},
	} {
		b, err := base64.StdEncoding.DecodeString(f.text)
		if err != nil {
			return nil, fmt.Errorf("parsing SE evidence: %s: %w", f.name, err)
		}
		if len(b) < f.min || len(b) > f.max {
			return nil, fmt.Errorf("parsing SE evidence: %s has %d bytes, expected %d to %d", f.name, len(b), f.min, f.max)
		}
		*f.to = b
	}
	var err error
	if e.Tags, err = ParseTags(tags); err != nil {
		return nil, fmt.Errorf("parsing SE evidence: %w", err)
	}
	return &e, nil
}

// Measured is what the measurement is an HMAC-SHA512 over. A nil nonce is one that was not requested.
func Measured(tags Tags, cuid, userData, nonce, additional []byte) []byte {
	b := append(tags.Bytes(), cuid...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(userData)))
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(additional)))
	return slices.Concat(b, userData, nonce, additional)
}

// AdditionalData is what the firmware adds to a measurement because the request's flags ask for it; nil: not asked for.
type AdditionalData struct {
	ImageHostKey, AttestationHostKey, SecretStore, FirmwareState []byte
}

// ParseAdditional takes additional data apart.
func ParseAdditional(b []byte, flags Flags) (a AdditionalData, err error) {
	for _, f := range []struct {
		flag Flags
		to   *[]byte
	}{
		{FlagImageHostKey, &a.ImageHostKey}, {FlagAttestationHostKey, &a.AttestationHostKey},
		{FlagSecretStore, &a.SecretStore}, {FlagFirmwareState, &a.FirmwareState},
	} {
		if flags&f.flag == 0 {
			continue
		}
		if len(b) < HashSize {
			return a, fmt.Errorf("parsing additional data: %d bytes left, expected %d", len(b), HashSize)
		}
		*f.to, b = b[:HashSize:HashSize], b[HashSize:]
	}
	if len(b) != 0 {
		return a, fmt.Errorf("parsing additional data: %d bytes more than were asked for", len(b))
	}
	return a, nil
}
