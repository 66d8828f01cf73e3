// Package azurevtpm verifies evidence of Azure confidential VMs, whose processor report is made by a paravisor below the
// guest and reaches it through a virtual TPM: az-snp-vtpm and az-tdx-vtpm of attestation-service.md section 4.7.
//
// What hangs together, and is checked in this order: the attestation key named in the HCL report's runtime data signed the
// TPM quote; the quote is over all 24 SHA-256 registers and over the values given; it carries the expected report data; in
// evidence of version 2 the user-data in the runtime data is the same; PCR 8 is the digest of the init data, extended once;
// the hash of the runtime data, and nothing else, is the report data of the hardware's report; and that report is genuine:
// by broker/verifier/snp and made at VMPL 0, or by a verifier of TD quotes. Nothing before the last two is worth anything
// without them. Whether the paravisor is Microsoft's is for the policy to tell, by the measurement.
//
// It checks more than upstream does: the registers the quote selects, the second half of the hardware's report data, that
// TDREPORT and TD quote agree on it, that user-data is zero beyond the report data, and all of broker/verifier/snp. The
// claim hcl_user_data says whether the hardware's report itself is bound to the session, which evidence of version 0 and 1
// does only through the TPM.
package azurevtpm

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/tee/hcl"
)

// Values of the claim hcl_user_data.
const (
	UserDataBound   = "bound"
	UserDataIgnored = "ignored"
)

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be the qualifying data of the TPM quote, byte for byte.
	ExpectedReportData []byte
	// InitDataDigest, 32 bytes, must be all that was extended into PCR 8. Nil leaves PCR 8 to the policy.
	InitDataDigest []byte
	// Now is the time certificates are checked at.
	Now time.Time
	// Roots are the pinned authorities of SNP; nil means AMD's.
	Roots *snp.Roots
	// Certificates gives the VCEK that evidence lacks, and CRLs; nil means that nothing does.
	Certificates snp.Certificates
	// Offline allows ExpectedReportData to be left out, for looking at saved evidence: the quote may be a replay. What is given
	// is checked.
	Offline bool
}

// TDQuote verifies a quote of Intel TDX: signatures, certificates and TCB, but no binding. The claims are those of TDX
// evidence; reportData is REPORTDATA, 64 bytes.
type TDQuote interface {
	VerifyTDQuote(ctx context.Context, quote []byte, now time.Time) (claims map[string]any, reportData []byte, err error)
}

// TDQuoteFunc is a TDQuote of one function.
type TDQuoteFunc func(ctx context.Context, quote []byte, now time.Time) (claims map[string]any, reportData []byte, err error)

// VerifyTDQuote is part of TDQuote.
func (f TDQuoteFunc) VerifyTDQuote(ctx context.Context, quote []byte, now time.Time) (map[string]any, []byte, error) {
	return f(ctx, quote, now)
}

// VerifySNP checks az-snp-vtpm evidence and returns its claims. All of them are strings.
func VerifySNP(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	v, err := open(evidence, hcl.SNP, o)
	if err != nil {
		return nil, err
	}
	report, endorsement, err := v.verifySNP(ctx, o)
	if err != nil {
		return nil, err
	}
	return v.addClaims(snpClaims(report, endorsement)), nil
}

// VerifyTDX checks az-tdx-vtpm evidence and returns its claims: those of the quote, with the TPM's beside them.
func VerifyTDX(ctx context.Context, evidence json.RawMessage, o Options, td TDQuote) (map[string]any, error) {
	if td == nil {
		return nil, errors.New("no verifier of TD quotes is given")
	}
	v, err := open(evidence, hcl.TDX, o)
	if err != nil {
		return nil, err
	}
	claims, err := v.verifyTDX(ctx, o, td)
	if err != nil {
		return nil, err
	}
	return v.addClaims(maps.Clone(claims)), nil
}

// open reads evidence and checks all of it but the hardware's report.
func open(evidence json.RawMessage, want hcl.HardwareType, o Options) (*vtpm, error) {
	if !o.Offline && len(o.ExpectedReportData) == 0 {
		return nil, errors.New("no report data is given to bind the evidence to")
	}
	v, err := parse(evidence, want)
	if err != nil {
		return nil, err
	}
	if err := v.checkQuote(); err != nil {
		return nil, err
	}
	// The report data is never padded nor cut here, unlike in the processors' own reports.
	if nonce := v.attest.ExtraData; len(o.ExpectedReportData) > 0 && subtle.ConstantTimeCompare(nonce, o.ExpectedReportData) != 1 {
		return nil, fmt.Errorf("report_data (nonce of the TPM quote) is %x, expected %x: %s",
			nonce, o.ExpectedReportData, "the quote was made for another session, key or set of devices")
	}
	if err := v.checkUserData(); err != nil {
		return nil, err
	}
	return v, v.checkInitData(o.InitDataDigest)
}

// runtimeHash is what the hardware's report data must be.
func (v *vtpm) runtimeHash() ([64]byte, error) {
	var out [64]byte
	if v.hcl.HashType != hcl.HashSHA256 {
		return out, fmt.Errorf("hash type of the HCL report is %d, expected %d (SHA-256)", v.hcl.HashType, hcl.HashSHA256)
	}
	sum := sha256.Sum256(v.hcl.RuntimeData)
	copy(out[:], sum[:])
	return out, nil
}

func checkRuntimeHash(what string, got []byte, want [64]byte) error {
	if subtle.ConstantTimeCompare(got, want[:]) != 1 {
		return fmt.Errorf("report data of the %s is %x, expected %x, the SHA-256 of the HCL runtime data", what, got, want)
	}
	return nil
}

// checkUserData holds the user-data against the nonce of the quote, which is the expected report data if any is.
func (v *vtpm) checkUserData() error {
	if v.version < 2 {
		return nil
	}
	var want [64]byte
	nonce := v.attest.ExtraData
	if len(nonce) > len(want) {
		return fmt.Errorf("nonce of the TPM quote has %d bytes, the user-data of the HCL report has room for %d", len(nonce), len(want))
	}
	copy(want[:], nonce)
	if subtle.ConstantTimeCompare(v.runtime.UserData, want[:]) != 1 {
		return fmt.Errorf("user-data of the HCL report is %x, expected %x as in the TPM quote", v.runtime.UserData, want)
	}
	return nil
}

// addClaims adds what both kinds of evidence say.
func (v *vtpm) addClaims(c map[string]any) map[string]any {
	if c == nil {
		c = map[string]any{}
	}
	registers := map[string]any{}
	for i, p := range v.pcrs {
		registers[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(p)
	}
	c["tpm"] = registers
	c["init_data"] = hex.EncodeToString(v.pcrs[initDataPCR])
	c["report_data"] = hex.EncodeToString(v.attest.ExtraData)
	c["hcl_user_data"] = UserDataIgnored
	if v.version >= 2 {
		c["hcl_user_data"] = UserDataBound
	}
	return c
}
