// Package tdx verifies Intel TDX evidence: {"quote":"<base64>","cc_eventlog":"<base64>"|null} (attestation-service.md
// section 4.4).
//
// Verify is a function of its arguments. It checks, in this order: that the quote is a TDX quote (version 4 or 5, TD 1.0 or
// 1.5); everything of package dcap; that REPORTDATA is the expected report data; that MRCONFIGID is the init-data digest; and
// that the event log, when there is one, replays to RTMR 0 to 3. Debug, migration, service TDs, an outdated TCB and expired
// collateral are claims for a policy to judge, not errors.
//
// Stricter than upstream: report data must be given; an event log may not contain events that no RTMR measures; registers
// the log does not speak of must be zero; claims list only the SHA-384 digest of an event, the one the replay covers.
package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/quote"
)

const (
	maxLog    = 1 << 20
	maxEvents = 4096
)

// Options is what evidence is held against.
type Options struct {
	// ExpectedReportData is what the quote must be bound to, padded with zeros to 64 bytes. It must be given unless Offline.
	ExpectedReportData []byte
	// InitDataDigest, padded with zeros or cut to 48 bytes, must be MRCONFIGID. Nil leaves MRCONFIGID to the policy.
	InitDataDigest []byte
	// Now is the time certificates and collateral are checked at. It must be set.
	Now time.Time
	// Collateral delivers what Intel publishes.
	Collateral dcap.Source
	// AllowNoCollateral: see dcap.Options.
	AllowNoCollateral bool
	// Root is the trust anchor, nil for Intel's. Other values are for tests.
	Root *x509.Certificate
	// Offline allows ExpectedReportData to be absent, for looking at saved evidence: it may be a replay. What is given is
	// checked.
	Offline bool
}

func (o Options) dcap() dcap.Options {
	return dcap.Options{Now: o.Now, Collateral: o.Collateral, AllowNoCollateral: o.AllowNoCollateral, Root: o.Root}
}

// evidence is what a guest sends.
type evidence struct {
	Quote    string  `json:"quote"`
	EventLog *string `json:"cc_eventlog"`
}

// Verify checks evidence and returns its claims.
func Verify(ctx context.Context, raw json.RawMessage, o Options) (map[string]any, error) {
	if len(o.ExpectedReportData) == 0 && !o.Offline {
		return nil, errors.New("no report data is given that the quote must be bound to")
	}
	var e evidence
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	b, err := decode("quote", e.Quote, quote.MaxSize)
	if err != nil {
		return nil, err
	}
	q, claims, err := verifyQuote(ctx, b, o.dcap())
	if err != nil {
		return nil, err
	}
	if len(o.ExpectedReportData) > 0 {
		if err := checkReportData(q.TD.ReportData, o.ExpectedReportData); err != nil {
			return nil, err
		}
	}
	if o.InitDataDigest != nil {
		want := make([]byte, len(q.TD.MRConfigID))
		copy(want, o.InitDataDigest)
		if !bytes.Equal(q.TD.MRConfigID, want) {
			return nil, fmt.Errorf("mr_config_id = %x, expected %x: the init data sent is not what the TD was launched with", q.TD.MRConfigID, want)
		}
	}
	if e.EventLog != nil && *e.EventLog != "" {
		if claims["uefi_event_logs"], err = checkEventLog(*e.EventLog, q.TD.RTMR[:]); err != nil {
			return nil, err
		}
	}
	return claims, nil
}

// VerifyTDQuote checks the quote of a TD and returns its claims, without those of an event log, and its report data. Nothing
// is bound to anything: the caller has to compare the report data.
func VerifyTDQuote(ctx context.Context, raw []byte, o dcap.Options) (claims map[string]any, reportData []byte, err error) {
	q, claims, err := verifyQuote(ctx, raw, o)
	if err != nil {
		return nil, nil, err
	}
	return claims, bytes.Clone(q.TD.ReportData), nil
}

func verifyQuote(ctx context.Context, raw []byte, o dcap.Options) (*quote.Quote, map[string]any, error) {
	q, err := quote.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	if q.TD == nil {
		return nil, nil, fmt.Errorf("quote is of TEE type %v, expected TDX", q.TEE)
	}
	r, err := dcap.Verify(ctx, q, o)
	if err != nil {
		return nil, nil, err
	}
	claims := r.Claims
	claims["quote"] = quoteClaims(q)
	claims["td_attributes"] = map[string]any{
		"debug":           q.TD.Attribute(quote.AttrDebug),
		"septve_disable":  q.TD.Attribute(quote.AttrSEPTVEDisable),
		"protection_keys": q.TD.Attribute(quote.AttrPKS),
		"key_locker":      q.TD.Attribute(quote.AttrKeyLocker),
		"perfmon":         q.TD.Attribute(quote.AttrPerfmon),
	}
	claims["report_data"] = hex.EncodeToString(q.TD.ReportData)
	claims["init_data"] = hex.EncodeToString(q.TD.MRConfigID)
	return q, claims, nil
}

// checkReportData compares the 64 bytes of a report with what is expected, padded with zeros.
func checkReportData(got, expected []byte) error {
	if len(expected) > len(got) {
		return fmt.Errorf("expected report data has %d bytes, a quote holds %d", len(expected), len(got))
	}
	want := make([]byte, len(got))
	copy(want, expected)
	if !bytes.Equal(got, want) {
		return fmt.Errorf("report_data = %x, expected %x: the quote was made for another session, key or set of devices", got, want)
	}
	return nil
}

func decode(name, text string, limit int) ([]byte, error) {
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

// checkEventLog replays the log and returns its claims.
func checkEventLog(text string, rtmr [][]byte) ([]any, error) {
	b, err := decode("cc_eventlog", text, maxLog)
	if err != nil {
		return nil, err
	}
	log, err := eventlog.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading cc_eventlog: %w", err)
	}
	if len(log.Events) > maxEvents {
		return nil, fmt.Errorf("cc_eventlog has %d events, at most %d are read", len(log.Events), maxEvents)
	}
	if err := log.CheckCC(eventlog.SHA384, rtmr); err != nil {
		return nil, fmt.Errorf("cc_eventlog: %w", err)
	}
	return log.Claims(eventlog.SHA384), nil
}
