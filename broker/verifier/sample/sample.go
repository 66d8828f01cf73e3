// Package sample verifies the evidence of guests without a TEE: none. Anyone can make it. It exists so that a handshake can
// be tried without hardware, and is refused unless the operator says insecure_sample.
//
// Evidence and claims are those of attestation-service.md sections 4.1 (TEE sample) and 4.2 (sampledevice, class gpu).
package sample

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const maxEvidence = 64 << 10

// Config switches the verifiers on.
type Config struct {
	// Insecure is the key insecure_sample: accept evidence that proves nothing.
	Insecure bool
}

// Check refuses to start a verifier that was not asked for by name.
func (c Config) Check() error {
	if !c.Insecure {
		return errors.New("sample evidence proves nothing and is refused; insecure_sample = true accepts it, for tests without a TEE")
	}
	return nil
}

// Options is what the evidence is held against.
type Options struct {
	Config
	// ExpectedReportData must be the report data, byte for byte.
	ExpectedReportData []byte
	// InitDataDigest becomes a claim. Nothing vouches for it, as for nothing else here.
	InitDataDigest []byte
	// Now is not looked at.
	Now time.Time
	// Offline leaves out the report data.
	Offline bool
}

type evidence struct {
	SVN        string `json:"svn"`
	ReportData string `json:"report_data"`
}

// Verify checks that evidence of the TEE sample carries the report data, and returns its claims.
func Verify(_ context.Context, raw json.RawMessage, o Options) (map[string]any, error) {
	e, err := verify(raw, o)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{
		"svn":              e.SVN,
		"report_data":      e.ReportData,
		"launch_digest":    "abcde",
		"platform_version": map[string]any{"major": int64(1), "minor": int64(4)},
		"debug":            false,
	}
	if o.InitDataDigest != nil {
		claims["init_data"] = base64.StdEncoding.EncodeToString(o.InitDataDigest)
	}
	return claims, nil
}

// VerifyDevice is Verify for the device sampledevice, whose claims are of class gpu.
func VerifyDevice(_ context.Context, raw json.RawMessage, o Options) (map[string]any, error) {
	e, err := verify(raw, o)
	if err != nil {
		return nil, err
	}
	return map[string]any{"svn": e.SVN, "report_data": e.ReportData}, nil
}

func verify(raw json.RawMessage, o Options) (*evidence, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if len(raw) > maxEvidence {
		return nil, fmt.Errorf("sample evidence of %d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var e evidence
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("reading sample evidence: %w", err)
	}
	if e.SVN == "" {
		return nil, errors.New("sample evidence has no svn")
	}
	got, err := base64.StdEncoding.DecodeString(e.ReportData)
	if err != nil {
		return nil, fmt.Errorf("reading report_data: %w", err)
	}
	if o.Offline {
		return &e, nil
	}
	if len(o.ExpectedReportData) == 0 {
		return nil, errors.New("no report data to bind the evidence to")
	}
	if subtle.ConstantTimeCompare(got, o.ExpectedReportData) != 1 {
		return nil, fmt.Errorf("report_data = %x, expected %x: the evidence was made for another session", got, o.ExpectedReportData)
	}
	return &e, nil
}
