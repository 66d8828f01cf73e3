// Package csv verifies the evidence of Hygon CSV guests.
//
// Verify checks: the report's SM2 signature under the platform key (PEK); the chain HRK → HSK → CEK → PEK with the right
// usage at every place, up to Hygon's root; the report data; in extended reports, that the event log replays to RTMR 1 to 4.
// Beyond upstream it demands that PEK and serial number in the report are those of the evidence around it, and checks the
// MAC of raw reports.
// Claims are those of attestation-service.md section 4.10. Debug is a claim (policy.nodbg), not a refusal.
//
// Init data cannot be bound: CSV has no field for it. It is not an error to have some, as upstream's guests do, but no
// claim init_data is made, so no policy can take it for measured.
//
// In version 1 reports the mask (anonce) is not signed. Whoever relays a report can flip the same bits in every four bytes
// of every field. The measurement of known software does not survive that, so a policy that demands a known measure is
// safe; one that looks at the policy bits alone is not.
package csv

import (
	"context"
	"crypto/hmac"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/eventlog"
)

// ErrNoEndorsement says that a report is signed by the key it brought, and that nobody could be asked who vouches for it.
var ErrNoEndorsement = errors.New("no HSK and CEK certificates for the chip")

// Endorsements finds the certificates of a chip: hsk_cek, as Hygon serves it. The serial number is letters and digits.
type Endorsements interface {
	HSKCEK(ctx context.Context, serial string) ([]byte, error)
}

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be in the report, padded with zeros to 64 bytes.
	ExpectedReportData []byte
	// InitDataDigest is not looked at: CSV has no field for it.
	InitDataDigest []byte
	// Root is the certificate the chain must lead to, 832 bytes; nil is Hygon's.
	Root []byte
	// Endorsements is asked when the evidence brings no certificates; nil knows none.
	Endorsements Endorsements
	// Now is not looked at: Hygon's certificates have no dates.
	Now time.Time
	// Offline leaves out the report data: the evidence may be a replay.
	Offline bool
}

// Verify checks evidence and returns its claims.
func Verify(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	e, err := csv.ParseEvidence(evidence)
	if err != nil {
		return nil, err
	}
	return VerifyParsed(ctx, e, o)
}

// VerifyParsed is Verify for evidence that was not wrapped in JSON.
func VerifyParsed(ctx context.Context, e *csv.Evidence, o Options) (map[string]any, error) {
	if err := checkReportData(e.Report.ReportData[:], o); err != nil {
		return nil, err
	}
	pek, err := checkReport(e)
	if err != nil {
		return nil, err
	}
	chain, err := endorsement(ctx, e, o.Endorsements)
	if err != nil {
		return nil, err
	}
	cek, err := CheckChipKey(o.Root, chain)
	if err != nil {
		return nil, err
	}
	if err := checkCert(cek.Key, csv.UsageCEK, pek, csv.UsagePEK); err != nil {
		return nil, fmt.Errorf("PEK: %w", err)
	}
	c := claims(e.Report, e.Serial)
	if e.Report.Version == 2 && e.EventLog != "" {
		if c["uefi_event_logs"], err = checkEventLog(e.EventLog, e.Report.RTMR); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func checkReportData(got []byte, o Options) error {
	if o.Offline {
		return nil
	}
	if len(o.ExpectedReportData) == 0 {
		return errors.New("no report data to bind the report to")
	}
	if len(o.ExpectedReportData) > len(got) {
		return fmt.Errorf("expected report data has %d bytes, more than the %d of a report", len(o.ExpectedReportData), len(got))
	}
	want := make([]byte, len(got))
	copy(want, o.ExpectedReportData)
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return fmt.Errorf("report_data = %x, expected %x: the report was made for another session", got, want)
	}
	return nil
}

// checkReport checks what can be checked without knowing who vouches for the platform key.
func checkReport(e *csv.Evidence) (*csv.Cert, error) {
	r := e.Report
	pek, err := csv.ParseCert(e.PEK)
	if err != nil {
		return nil, fmt.Errorf("reading PEK: %w", err)
	}
	if pek.Usage != csv.UsagePEK {
		return nil, fmt.Errorf("PEK: key usage = %v, expected %v", pek.Usage, csv.UsagePEK)
	}
	if r.SignatureUsage != csv.UsagePEK || r.SignatureAlgorithm != csv.AlgSM2 {
		return nil, fmt.Errorf("report signature is by %v with algorithm %d, expected %v with %d (SM2)",
			r.SignatureUsage, r.SignatureAlgorithm, csv.UsagePEK, csv.AlgSM2)
	}
	if err := CheckSignature(pek.Key, r.Signed, r.Signature); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if subtle.ConstantTimeCompare(e.PEK, r.Signer.PEK) != 1 {
		return nil, errors.New("cert_chain.pek is not the PEK in the report")
	}
	if e.Serial != r.Signer.Serial {
		return nil, fmt.Errorf("serial_number = %q, the report has %q", e.Serial, r.Signer.Serial)
	}
	if r.Signer.MACed == nil {
		return pek, nil
	}
	mac := hmac.New(func() hash.Hash { return eventlog.SM3.New() }, r.MNonce[:])
	mac.Write(r.Signer.MACed)
	if !hmac.Equal(mac.Sum(nil), r.Signer.MAC[:]) {
		return nil, errors.New("the MAC over PEK and serial number is wrong: the report is damaged")
	}
	return pek, nil
}

func endorsement(ctx context.Context, e *csv.Evidence, source Endorsements) ([]byte, error) {
	if e.Chain != nil {
		return e.Chain, nil
	}
	if source == nil {
		return nil, fmt.Errorf("%w %s: neither in the evidence nor in a store", ErrNoEndorsement, e.Serial)
	}
	chain, err := source.HSKCEK(ctx, e.Serial)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrNoEndorsement, e.Serial, err)
	}
	return chain, nil
}

func claims(r *csv.Report, serial string) map[string]any {
	c := map[string]any{
		"version":            fmt.Sprint(r.Version),
		"policy":             policyClaims(r.Policy),
		"user_pubkey_digest": hex.EncodeToString(r.UserPublicKeyDigest[:]),
		"vm_id":              hex.EncodeToString(r.VMID[:]),
		"vm_version":         hex.EncodeToString(r.VMVersion[:]),
		"report_data":        hex.EncodeToString(r.ReportData[:]),
		"mnonce":             hex.EncodeToString(r.MNonce[:]),
		"measure":            hex.EncodeToString(r.Measure[:]),
		"sig_usage":          hexLE(uint32(r.SignatureUsage)),
		"sig_algo":           hexLE(r.SignatureAlgorithm),
		"serial_number":      serial,
	}
	if r.Version == 1 {
		c["anonce"] = hexLE(r.ANonce)
		return c
	}
	c["build"] = int64(r.Build)
	c["rtmr_version"] = int64(r.RTMRVersion)
	c["reserved0"] = hex.EncodeToString(r.Reserved0[:])
	for i := range r.RTMR {
		c[fmt.Sprintf("rtmr%d", i)] = hex.EncodeToString(r.RTMR[i][:])
	}
	c["reserved1"] = hex.EncodeToString(r.Reserved1[:])
	return c
}

func hexLE(v uint32) string {
	return hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, v))
}
