package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/kbs"
)

const (
	tpmReportData  = 32
	maxFirmwareLog = 1 << 20 // keeps the evidence far below the 4 MiB of a ttrpc message
	quoteAttempts  = 5
)

// Evidence implements Attester: a quote over reportData, cut or zero-padded to
// 32 bytes, and PCR 0 to 23 of the SHA-256 bank, with their values and the
// firmware's event log.
func (t *TPM) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	return t.EvidenceWithCredential(ctx, reportData, nil)
}

// EvidenceWithCredential is Evidence with the secret that ActivateCredential
// recovered, which proves that the quote's key lives beside a certified one.
func (t *TPM) EvidenceWithCredential(ctx context.Context, reportData, credential []byte) (json.RawMessage, error) {
	nonce := make([]byte, tpmReportData)
	copy(nonce, reportData)
	if err := t.acquire(ctx); err != nil {
		return nil, err
	}
	defer t.release()
	ak, err := t.loadAK()
	if err != nil {
		return nil, fmt.Errorf("collecting TPM evidence: %w", err)
	}
	quote, err := t.quote(ctx, ak, nonce)
	if err != nil {
		return nil, fmt.Errorf("collecting TPM evidence: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(ak.public.Key)
	if err != nil {
		return nil, fmt.Errorf("collecting TPM evidence: attestation key: %w", err)
	}
	log, err := t.firmwareLog()
	if err != nil {
		return nil, fmt.Errorf("collecting TPM evidence: %w", err)
	}
	b64 := base64.StdEncoding.EncodeToString
	evidence, err := json.Marshal(kbs.TPMEvidence{
		TPMQuote:     *quote,
		AKPublic:     b64(spki),
		EventLog:     b64(log),
		AKCredential: b64(credential),
	})
	if err != nil {
		return nil, fmt.Errorf("collecting TPM evidence: %w", err)
	}
	return evidence, nil
}

// quote signs the registers and reads their values. Another measurement may
// come in between, so the values are checked against the signed digest and both
// are taken again, a bounded number of times.
func (t *TPM) quote(ctx context.Context, ak *attestationKey, nonce []byte) (*kbs.TPMQuote, error) {
	all := make([]int, pcrCount)
	for i := range all {
		all[i] = i
	}
	for range quoteAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      pcrSelection(all),
		}.Execute(t.dev)
		if err != nil {
			return nil, fmt.Errorf("quoting: %w", err)
		}
		values, err := t.readPCRs(all)
		if err != nil {
			return nil, err
		}
		message := rsp.Quoted.Bytes()
		attest, err := tpm.ParseAttest(message)
		if err != nil {
			return nil, err
		}
		digest, err := tpm.PCRDigest(attest.Selections, tpm.PCRValues{tpm.AlgSHA256: values}, crypto.SHA256)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(digest, attest.PCRDigest) {
			continue
		}
		q := &kbs.TPMQuote{
			Signature: base64.StdEncoding.EncodeToString(tpm2.Marshal(rsp.Signature)),
			Message:   base64.StdEncoding.EncodeToString(message),
		}
		for _, i := range all {
			q.PCRs = append(q.PCRs, hex.EncodeToString(values[i]))
		}
		return q, nil
	}
	return nil, fmt.Errorf("quoting: the registers changed during each of %d attempts", quoteAttempts)
}

// EnrolParams implements Enroller.
func (t *TPM) EnrolParams(ctx context.Context) (*kbs.TPMEnrol, error) {
	if err := t.acquire(ctx); err != nil {
		return nil, err
	}
	defer t.release()
	ak, err := t.loadAK()
	if err != nil {
		return nil, fmt.Errorf("enrolling the TPM: %w", err)
	}
	ek, err := t.loadEK()
	if err != nil {
		return nil, fmt.Errorf("enrolling the TPM: %w", err)
	}
	return &kbs.TPMEnrol{AKPublic: ak.public.Bytes(), EKPublic: ek.public.Bytes(), EKCertificate: ek.certificate}, nil
}

// ActivateCredential implements Enroller: it recovers the secret that was
// encrypted to the endorsement key for the attestation key's name.
func (t *TPM) ActivateCredential(ctx context.Context, c *kbs.TPMCredential) ([]byte, error) {
	if len(c.CredentialBlob) > 256 || len(c.EncryptedSecret) > 512 {
		return nil, fmt.Errorf("activating the TPM credential: blob of %d and secret of %d bytes, expected at most 256 and 512",
			len(c.CredentialBlob), len(c.EncryptedSecret))
	}
	if err := t.acquire(ctx); err != nil {
		return nil, err
	}
	defer t.release()
	ak, err := t.loadAK()
	if err != nil {
		return nil, fmt.Errorf("activating the TPM credential: %w", err)
	}
	ek, err := t.loadEK()
	if err != nil {
		return nil, fmt.Errorf("activating the TPM credential: %w", err)
	}
	session, closeSession, err := tpm2.PolicySession(t.dev, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, fmt.Errorf("activating the TPM credential: opening a policy session: %w", err)
	}
	defer func() { _ = closeSession() }() // the session ends with the command; an unused one with the device
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session.Handle(),
		NonceTPM:      session.NonceTPM(),
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("activating the TPM credential: authorising the endorsement key: %w", err)
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: session},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.CredentialBlob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.EncryptedSecret},
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("activating the TPM credential: %w", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// readBounded reads all of r and refuses more than limit bytes.
func readBounded(r io.Reader, limit int, what string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if len(b) > limit {
		return nil, errors.New("reading " + what + ": it is larger than " + fmt.Sprint(limit) + " bytes")
	}
	return b, nil
}
