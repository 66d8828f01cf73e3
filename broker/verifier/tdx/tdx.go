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
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/quote"
)

const (
	maxLog    = 1 << 20
	maxEvents = 4096
)

// Options is what evidence is held against.
type Options = dcap.EvidenceOptions

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
	b, err := dcap.Decode("quote", e.Quote, quote.MaxSize)
	if err != nil {
		return nil, err
	}
	q, claims, err := verifyQuote(ctx, b, o.Quote())
	if err != nil {
		return nil, err
	}
	if err := o.BoundReportData(q.TD.ReportData); err != nil {
		return nil, err
	}
	if d := o.InitDataDigest; d != nil {
		const meaning = "the init data sent is not what the TD was launched with"
		if err := dcap.Bound("mr_config_id", q.TD.MRConfigID, d[:min(len(d), len(q.TD.MRConfigID))], meaning); err != nil {
			return nil, err
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

// checkEventLog replays the log and returns its claims.
func checkEventLog(text string, rtmr [][]byte) ([]any, error) {
	b, err := dcap.Decode("cc_eventlog", text, maxLog)
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
