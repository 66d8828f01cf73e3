package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"
)

// EvidenceOptions is what a guest's evidence with a quote in it is held against.
type EvidenceOptions struct {
	// ExpectedReportData is what the quote must be bound to, padded with zeros to 64 bytes. It must be given unless Offline.
	ExpectedReportData []byte
	// InitDataDigest, padded with zeros, must be what the TEE measured of the configuration: CONFIGID of an enclave, MRCONFIGID of a TD, for
	// which it is cut to 48 bytes. Nil leaves that to the policy.
	InitDataDigest []byte
	// Now is the time certificates and collateral are checked at. It must be set.
	Now time.Time
	// Collateral delivers what Intel publishes.
	Collateral Source
	// AllowNoCollateral: see Options.
	AllowNoCollateral bool
	// Root is the trust anchor, nil for Intel's. Other values are for tests.
	Root *x509.Certificate
	// Offline allows ExpectedReportData to be absent, for looking at saved evidence: it may be a replay. What is given is
	// checked.
	Offline bool
}

// Quote is what the quote in the evidence is held against.
func (o EvidenceOptions) Quote() Options {
	return Options{Now: o.Now, Collateral: o.Collateral, AllowNoCollateral: o.AllowNoCollateral, Root: o.Root}
}

// Bound compares a field of a quote with a value that is padded with zeros. meaning says what a difference tells.
func Bound(field string, got, value []byte, meaning string) error {
	if len(value) > len(got) {
		return fmt.Errorf("value for %s has %d bytes, expected at most %d", field, len(value), len(got))
	}
	want := make([]byte, len(got))
	copy(want, value)
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s = %x, expected %x: %s", field, got, want, meaning)
	}
	return nil
}

// BoundReportData compares the report data of a quote with what was asked for, if anything was.
func (o EvidenceOptions) BoundReportData(got []byte) error {
	if len(o.ExpectedReportData) == 0 {
		return nil
	}
	return Bound("report_data", got, o.ExpectedReportData, "the quote was made for another session, key or set of devices")
}

// Decode reads a field of evidence that is in base64 and has at most limit bytes.
func Decode(name, text string, limit int) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if len(text) > base64.StdEncoding.EncodedLen(limit) {
		return nil, fmt.Errorf("%s has %d characters, more than %d bytes have", name, len(text), limit)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}
