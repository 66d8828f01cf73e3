package faketpm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"sync"

	"github.com/cloister/cloister/wire/kbs"
)

// Attester is a TPM as a guest's attestation agent uses it. Many guests may share it.
type Attester struct {
	mu  sync.Mutex // the TPM does one thing at a time
	tpm *TPM
}

// NewAttester makes an Attester.
func NewAttester(t *TPM) *Attester { return &Attester{tpm: t} }

// TEE is part of the agent's attester, as are the methods below.
func (a *Attester) TEE() string { return "tpm" }

// Evidence makes a quote over report data.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	return a.EvidenceWithCredential(ctx, reportData, nil)
}

// EnrolParams announces the keys.
func (a *Attester) EnrolParams(context.Context) (*kbs.TPMEnrol, error) {
	e := a.tpm.Enrol()
	return &e, nil
}

// ActivateCredential opens a credential.
func (a *Attester) ActivateCredential(_ context.Context, c *kbs.TPMCredential) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tpm.Activate(*c)
}

// EvidenceWithCredential answers a credential with the quote.
func (a *Attester) EvidenceWithCredential(_ context.Context, reportData, credential []byte) (json.RawMessage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, err := a.tpm.Evidence(reportData[:min(32, len(reportData))])
	if err != nil {
		return nil, err
	}
	if credential != nil {
		e.AKCredential = base64.StdEncoding.EncodeToString(credential)
	}
	return json.Marshal(e)
}
