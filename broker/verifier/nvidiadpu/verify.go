// Package nvidiadpu verifies evidence of an NVIDIA BlueField DPU: a chain of two DICE certificates under the maker's root
// and a signature of the report data (attestation-service.md section 4.14).
//
// Verify checks: root, DeviceID and Alias certificate, ECDSA P-384 with SHA-384 throughout; their times, and that the
// Alias is not older than allowed; the signature over the report data with the Alias key. Upstream's attester signs the
// report data padded to 64 bytes while its verifier checks it unpadded; both are accepted.
//
// More is checked than upstream does: the version; that issuers are named as such and may sign certificates; the end of
// the Alias's validity; critical extensions. A TcbInfo extension that does not read is refused, where upstream says that
// there is none; and its list of firmware ids is read in the form that the DICE standard gives it, where upstream finds
// nothing in that form, so that firmware_layers_count and accumulated_fwid differ for such certificates.
//
// No root is embedded: NVIDIA publishes none. No recording of real evidence is at hand, either.
package nvidiadpu

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Class is the class of the result.
const Class = "nvidia-dpu"

const (
	// DefaultMaxAge is how old an Alias certificate may be unless Options says otherwise.
	DefaultMaxAge = time.Hour

	version        = 1
	architecture   = "bluefield3"
	reportDataSize = 64
	rawSignature   = 96
	maxCertificate = 16 << 10
	maxSignature   = 256
)

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData is what the Alias key must have signed, at most 64 bytes.
	ExpectedReportData []byte
	// InitDataDigest must be nil: the evidence has no place for it.
	InitDataDigest []byte
	// Offline leaves the signature over the report data unchecked, which is only for looking at saved evidence.
	Offline bool
	// Now is the time that certificates are checked at.
	Now time.Time
	// Root is the maker's certificate. It is mandatory.
	Root *x509.Certificate
	// MaxAge is how old the Alias certificate may be; 0 means DefaultMaxAge.
	MaxAge time.Duration
}

type evidence struct {
	Version int `json:"version"`
	Devices []struct {
		Architecture string `json:"architecture"`
		Alias        string `json:"alias_cert"`
		DeviceID     string `json:"device_id_cert"`
		Signature    string `json:"report_data_signature"`
	} `json:"devices"`
}

// Verify checks evidence of one DPU and returns its claims.
func Verify(_ context.Context, text json.RawMessage, o Options) (map[string]any, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	var e evidence
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	switch {
	case e.Version != version:
		return nil, fmt.Errorf("version is %d, want %d", e.Version, version)
	case len(e.Devices) != 1:
		return nil, fmt.Errorf("evidence is of %d devices, want 1", len(e.Devices))
	case e.Devices[0].Architecture != architecture:
		return nil, fmt.Errorf("architecture is %.32q, want %q", e.Devices[0].Architecture, architecture)
	}
	d := e.Devices[0]
	deviceID, err := certificate("device_id_cert", d.DeviceID)
	if err != nil {
		return nil, err
	}
	alias, err := certificate("alias_cert", d.Alias)
	if err != nil {
		return nil, err
	}
	if err := o.checkChain(deviceID, alias); err != nil {
		return nil, err
	}
	claims, err := deviceClaims(deviceID, alias)
	if err != nil {
		return nil, err
	}
	if o.Offline {
		return claims, nil
	}
	signature, err := decode("report_data_signature", d.Signature, maxSignature)
	if err != nil {
		return nil, err
	}
	if !signed(alias.PublicKey.(*ecdsa.PublicKey), o.ExpectedReportData, signature) {
		return nil, fmt.Errorf("report_data_signature is not that of the Alias key over the report data %x", o.ExpectedReportData)
	}
	claims["session_nonce"] = hex.EncodeToString(o.ExpectedReportData)
	return claims, nil
}

func (o Options) check() error {
	switch {
	case o.Root == nil:
		return errors.New("no root certificate of the maker is configured")
	case o.Now.IsZero():
		return errors.New("no time to verify at")
	case o.InitDataDigest != nil:
		return errors.New("init data was given, and DPU evidence cannot be bound to any")
	case len(o.ExpectedReportData) == 0 && !o.Offline:
		return errors.New("no report data to bind the evidence to")
	case len(o.ExpectedReportData) > reportDataSize:
		return fmt.Errorf("report data has %d bytes, at most %d are signed", len(o.ExpectedReportData), reportDataSize)
	case o.MaxAge < 0:
		return fmt.Errorf("maximum age is %s, want a positive time", o.MaxAge)
	}
	return p384("root", o.Root)
}

// signed checks a signature, r and s or DER, over the report data as it is or padded.
func signed(key *ecdsa.PublicKey, reportData, signature []byte) bool {
	var padded [reportDataSize]byte
	copy(padded[:], reportData)
	for _, message := range [][]byte{reportData, padded[:]} {
		digest := sha512.Sum384(message)
		if ecdsa.VerifyASN1(key, digest[:], signature) {
			return true
		}
		if len(signature) == rawSignature {
			r, s := new(big.Int).SetBytes(signature[:rawSignature/2]), new(big.Int).SetBytes(signature[rawSignature/2:])
			if ecdsa.Verify(key, digest[:], r, s) {
				return true
			}
		}
	}
	return false
}

func certificate(name, text string) (*x509.Certificate, error) {
	der, err := decode(name, text, maxCertificate)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return cert, p384(name, cert)
}

func p384(name string, cert *x509.Certificate) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return fmt.Errorf("key of %s is not on P-384", name)
	}
	return nil
}

func decode(name, text string, most int) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if len(text) > base64.StdEncoding.EncodedLen(most) {
		return nil, fmt.Errorf("%s has %d characters, at most %d bytes are read", name, len(text), most)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}
