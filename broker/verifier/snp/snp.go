// Package snp verifies AMD SEV-SNP evidence: the processor's report and the certificates that lead from it to AMD.
//
// Verify is a function of its arguments alone. It checks, in this order: that the report is of a version it knows; that the
// certificate is a VCEK or VLEK for the report's product line, TCB version and chip; that it leads to a pinned ARK; the
// report's signature; whether an authority is revoked; then, for a session, that the report was asked for at VMPL 0, that
// it carries the expected report data, and that HOST_DATA is the digest of the init data. Evidence and claims are those
// of attestation-service.md section 4.3.
//
// It checks more than upstream does: reports of version 2 are taken, by the line of their certificate; the chip id is
// compared whatever the certificate calls itself; reserved bit 17 of the guest policy and the reserved bytes of the
// signature must be as AMD writes them; the kind of signing key, the product name and the certificates' times and
// revocation are looked at. For policies it says so in claims of its own: report_version, guest_svn, vmpl, host_requested,
// signing_key, csp_id, product, chip_id_masked, cert_validity, cert_revocation, reported_tcb_fmc.
//
// Debugging and migration are claims (policy_debug_allowed, policy_migrate_ma), never refused here: the policy must.
package snp

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/snp"
)

const maxEvidence = 1 << 20

// Certificates is where certificates come from that the evidence lacks. Answers need not be trustworthy, and
// are DER or PEM.
type Certificates interface {
	// VCEK returns the certificate of a chip's key for a TCB version. chipID is the bytes that name the chip: 8 on Turin,
	// else 64.
	VCEK(ctx context.Context, line snp.Line, chipID []byte, tcb snp.TCB) ([]byte, error)
	// CRL returns the ARK's list of revoked authorities, of those for VLEKs if vlek.
	CRL(ctx context.Context, line snp.Line, vlek bool) ([]byte, error)
}

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be in the report, zero-padded or cut to 64 bytes.
	ExpectedReportData []byte
	// InitDataDigest must be HOST_DATA, zero-padded or cut to 32 bytes. Nil leaves HOST_DATA to the policy.
	InitDataDigest []byte
	// Now is the time certificates and CRLs are checked at.
	Now time.Time
	// Roots are the pinned authorities; nil means AMD's.
	Roots *Roots
	// Certificates gives what the evidence lacks; nil means that nothing does.
	Certificates Certificates
	// AllowMaskedChipID takes VCEK-signed reports of hosts that hide the chip id, with the claim chip_id_masked. A chip id that
	// is there all the same must still be the certificate's.
	AllowMaskedChipID bool
	// Offline looks at saved evidence: report data may be left out and the VMPL is not checked, so the report may be a replay,
	// or made by less privileged software in the guest. What is given is checked.
	Offline bool
}

func (o Options) check() (*Roots, error) {
	if o.Now.IsZero() {
		return nil, errors.New("no time is given to check certificates at")
	}
	if o.Roots != nil {
		return o.Roots, nil
	}
	return AMDRoots()
}

// Verify checks evidence and returns its claims.
func Verify(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	if !o.Offline && len(o.ExpectedReportData) == 0 {
		return nil, errors.New("no report data is given to bind the evidence to")
	}
	raw, chain, err := ParseEvidence(evidence)
	if err != nil {
		return nil, err
	}
	r, err := snp.Parse(raw)
	if err != nil {
		return nil, err
	}
	if r.Version > snp.MaxVersion {
		return nil, fmt.Errorf("version of the report is %d, expected %d to %d", r.Version, snp.MinVersion, snp.MaxVersion)
	}
	e, err := VerifyReport(ctx, r, chain, o)
	if err != nil {
		return nil, err
	}
	if !o.Offline && r.VMPL != 0 {
		return nil, fmt.Errorf("vmpl of the report is %d, expected 0", r.VMPL)
	}
	if len(o.ExpectedReportData) > 0 {
		if err := checkPadded("report_data", r.ReportData[:], o.ExpectedReportData,
			"the report was made for another session, key or set of devices"); err != nil {
			return nil, err
		}
	}
	if o.InitDataDigest != nil {
		if len(o.InitDataDigest) == 0 {
			return nil, errors.New("the digest of the init-data is empty")
		}
		if err := checkPadded("init_data (HOST_DATA)", r.HostData[:], o.InitDataDigest,
			"the init-data sent is not what the guest was started with"); err != nil {
			return nil, err
		}
	}
	return Claims(r, e), nil
}

// checkPadded compares a field with what is expected, zero-padded or cut to the field's size.
func checkPadded(name string, got, expected []byte, meaning string) error {
	want := make([]byte, len(got))
	copy(want, expected)
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return fmt.Errorf("%s is %x, expected %x: %s", name, got, want, meaning)
	}
	return nil
}
