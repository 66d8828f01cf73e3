package azurevtpm

import (
	"context"
	"encoding/base64"
	"fmt"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/tee/snp"
)

// verifySNP checks the processor's report. Its VMPL must be 0 also offline: at the others, software inside the guest could
// have a report made over runtime data of its own invention.
func (v *vtpm) verifySNP(ctx context.Context, o Options) (*snp.Report, *verifier.Endorsement, error) {
	raw, err := v.hcl.SNPReport()
	if err != nil {
		return nil, nil, err
	}
	r, err := snp.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	want, err := v.runtimeHash()
	if err != nil {
		return nil, nil, err
	}
	if err := checkRuntimeHash("SNP report", r.ReportData[:], want); err != nil {
		return nil, nil, err
	}
	if r.VMPL != 0 {
		return nil, nil, fmt.Errorf("vmpl of the SNP report is %d, expected 0: it was not made by the paravisor", r.VMPL)
	}
	e, err := verifier.VerifyReport(ctx, r, verifier.Chain{Leaf: v.vcek},
		verifier.Options{Now: o.Now, Roots: o.Roots, Certificates: o.Certificates})
	return r, e, err
}

// snpClaims are those of SNP with every value as text, the measurement in base64, and without chip id.
func snpClaims(r *snp.Report, e *verifier.Endorsement) map[string]any {
	out := map[string]any{"measurement": base64.StdEncoding.EncodeToString(r.Measurement[:])}
	for name, value := range verifier.Common(r, e) {
		out[name] = fmt.Sprint(value)
	}
	return out
}

// verifyTDX checks the TD quote, and that it and the TDREPORT it was made from speak of the runtime data.
func (v *vtpm) verifyTDX(ctx context.Context, o Options, td TDQuote) (map[string]any, error) {
	want, err := v.runtimeHash()
	if err != nil {
		return nil, err
	}
	inReport, err := v.hcl.TDReportData()
	if err != nil {
		return nil, err
	}
	if err := checkRuntimeHash("TDREPORT", inReport[:], want); err != nil {
		return nil, err
	}
	claims, inQuote, err := td.VerifyTDQuote(ctx, v.tdQuote, o.Now)
	if err != nil {
		return nil, fmt.Errorf("verifying the TD quote: %w", err)
	}
	if err := checkRuntimeHash("TD quote", inQuote, want); err != nil {
		return nil, err
	}
	return claims, nil
}
