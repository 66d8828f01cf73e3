package azurevtpm

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"

	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/tee/tpm"
)

// Parts are evidence kept as files, one for each part, of which some may be missing.
type Parts struct {
	HCL []byte
	// Message and Signature are the TPM quote; without them nothing is known of the moment and of the registers.
	Message, Signature []byte
	// VCEK is the certificate, DER or PEM, of SNP hardware; TDQuote is the quote of TDX hardware.
	VCEK, TDQuote []byte
}

// VerifySNPParts is VerifySNP for parts. What there is must fit together; values of the registers are never there, so that the
// claims have only their digest, tpm_pcr_digest.
func VerifySNPParts(ctx context.Context, p Parts, o Options) (map[string]any, error) {
	v, err := openParts(p, hcl.SNP, o)
	if err != nil {
		return nil, err
	}
	report, endorsement, err := v.verifySNP(ctx, o)
	if err != nil {
		return nil, err
	}
	return v.addPartClaims(snpClaims(report, endorsement)), nil
}

// VerifyTDXParts is VerifyTDX for parts, see VerifySNPParts.
func VerifyTDXParts(ctx context.Context, p Parts, o Options, td TDQuote) (map[string]any, error) {
	if td == nil {
		return nil, errors.New("no verifier of TD quotes is given")
	}
	v, err := openParts(p, hcl.TDX, o)
	if err != nil {
		return nil, err
	}
	claims, err := v.verifyTDX(ctx, o, td)
	if err != nil {
		return nil, err
	}
	return v.addPartClaims(maps.Clone(claims)), nil
}

func openParts(p Parts, want hcl.HardwareType, o Options) (*vtpm, error) {
	v := &vtpm{message: p.Message, signature: p.Signature, vcek: p.VCEK, tdQuote: p.TDQuote}
	if err := v.parseHCL(p.HCL, want); err != nil {
		return nil, err
	}
	if (p.Message == nil) != (p.Signature == nil) {
		return nil, errors.New("of the TPM quote there is only one of message and signature, expected both or none")
	}
	if p.Message == nil {
		if len(o.ExpectedReportData) > 0 {
			return nil, errors.New("report data is given, expected a TPM quote to hold against it")
		}
		return v, nil
	}
	var err error
	if v.attest, err = tpm.ParseAttest(v.message); err != nil {
		return nil, fmt.Errorf("reading the TPM quote: %w", err)
	}
	if err := v.checkSignature(); err != nil {
		return nil, err
	}
	if nonce := v.attest.ExtraData; len(o.ExpectedReportData) > 0 && subtle.ConstantTimeCompare(nonce, o.ExpectedReportData) != 1 {
		return nil, fmt.Errorf("report_data (nonce of the TPM quote) is %x, expected %x", nonce, o.ExpectedReportData)
	}
	return v, v.checkSelection()
}

func (v *vtpm) addPartClaims(c map[string]any) map[string]any {
	if c == nil {
		c = map[string]any{}
	}
	if v.attest != nil {
		c["report_data"] = fmt.Sprintf("%x", v.attest.ExtraData)
		c["tpm_pcr_digest"] = fmt.Sprintf("%x", v.attest.PCRDigest)
	}
	return c
}
