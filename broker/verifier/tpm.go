package verifier

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/wire/kbs"
)

// tpmVerifier adapts broker/verifier/tpm to the list.
type tpmVerifier struct {
	config Config
	roots  *x509.CertPool
}

func (c Config) tpm() (Verifier, error) {
	roots, err := c.TPM.Roots()
	if err != nil {
		return nil, err
	}
	return &tpmVerifier{config: c, roots: roots}, nil
}

// Challenge makes a credential that only the TPM of the announced keys can open. Clients that announce none get none.
func (v *tpmVerifier) Challenge(_ context.Context, params json.RawMessage) (*Challenge, error) {
	p, err := kbs.Request{ExtraParams: params}.Params()
	if err != nil {
		return nil, err
	}
	if p.TPM == nil {
		return &Challenge{}, nil
	}
	reply, credential, err := tpm.NewCredential(*p.TPM)
	if err != nil {
		return nil, fmt.Errorf("making TPM credential: %w", err)
	}
	remember, err := json.Marshal(credential)
	if err != nil {
		return nil, fmt.Errorf("encoding TPM credential: %w", err)
	}
	return &Challenge{Params: &kbs.ChallengeParams{TPM: reply}, Remember: remember}, nil
}

// Verify is part of Verifier.
func (v *tpmVerifier) Verify(_ context.Context, r Request) ([]Result, error) {
	if len(r.ReportData) == 0 && !v.config.Unbound {
		return nil, errors.New("verifying TPM evidence: no report data to bind it to")
	}
	o := tpm.Options{ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, EKRoots: v.roots, Now: v.config.Now()}
	if r.Challenge != nil {
		o.Credential = &tpm.Credential{}
		if err := json.Unmarshal(r.Challenge, o.Credential); err != nil {
			return nil, fmt.Errorf("reading the TPM credential of the session: %w", err)
		}
	}
	claims, err := tpm.Verify(r.Evidence, o)
	if err != nil {
		return nil, fmt.Errorf("verifying TPM evidence: %w", err)
	}
	return []Result{{Class: ClassCPU, Claims: claims}}, nil
}
