package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/test/swtpm"
	"github.com/cloister/cloister/wire/kbs"
)

func newTPM(t *testing.T) (*attest.TPM, *swtpm.TPM) {
	t.Helper()
	fake := swtpm.Start(t)
	a := attest.NewTPMOver(fake.Transport(), filepath.Join(t.TempDir(), "log"))
	t.Cleanup(func() { _ = a.Close() })
	return a, fake
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// verifyEvidence does the checks of a verifier and returns the parsed evidence.
func verifyEvidence(t *testing.T, raw json.RawMessage, reportData []byte) kbs.TPMEvidence {
	t.Helper()
	var ev kbs.TPMEvidence
	if err := json.Unmarshal(raw, &ev); err != nil {
		t.Fatal(err)
	}
	unb64 := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ak, err := x509.ParsePKIXPublicKey(unb64(ev.AKPublic))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := tpm.ParseSignature(unb64(ev.TPMQuote.Signature))
	if err != nil {
		t.Fatal(err)
	}
	message := unb64(ev.TPMQuote.Message)
	if err := tpm.VerifySignature(ak, message, sig); err != nil {
		t.Fatal(err)
	}
	quote, err := tpm.ParseAttest(message)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 32)
	copy(nonce, reportData)
	if !bytes.Equal(quote.ExtraData, nonce) {
		t.Errorf("quote is over %x, expected %x", quote.ExtraData, nonce)
	}
	values := tpm.PCRValues{tpm.AlgSHA256: {}}
	for i, h := range ev.TPMQuote.PCRs {
		if values[tpm.AlgSHA256][i], err = hex.DecodeString(h); err != nil {
			t.Fatal(err)
		}
	}
	digest, err := tpm.PCRDigest(quote.Selections, values, crypto.SHA256)
	if err != nil || !bytes.Equal(digest, quote.PCRDigest) {
		t.Errorf("PCR digest of the values is %x (%v), the quote has %x", digest, err, quote.PCRDigest)
	}
	if len(ev.TPMQuote.PCRs) != 24 {
		t.Errorf("%d PCR values, expected 24", len(ev.TPMQuote.PCRs))
	}
	return ev
}

func TestTPMEvidence(t *testing.T) {
	fake := swtpm.Start(t)
	logPath := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(logPath, []byte("firmware log"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := attest.NewTPMOver(fake.Transport(), logPath)
	defer a.Close()
	ctx := testContext(t)

	digest := sha256.Sum256([]byte("initdata"))
	if err := a.ExtendPCR(ctx, 8, digest[:]); err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte{7}, 48)
	raw, err := a.Evidence(ctx, long)
	if err != nil {
		t.Fatal(err)
	}
	ev := verifyEvidence(t, raw, long[:32])
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if ev.TPMQuote.PCRs[8] != hex.EncodeToString(want[:]) {
		t.Errorf("PCR 8 is %s, expected %x", ev.TPMQuote.PCRs[8], want)
	}
	if log, _ := base64.StdEncoding.DecodeString(ev.EventLog); string(log) != "firmware log" {
		t.Errorf("event log is %q", log)
	}
	if ev.AKCredential != "" {
		t.Error("evidence without a credential has one")
	}
	raw, err = a.Evidence(ctx, []byte("short"))
	if err != nil {
		t.Fatal(err)
	}
	again := verifyEvidence(t, raw, []byte("short"))
	if again.AKPublic != ev.AKPublic {
		t.Error("the attestation key changed")
	}
	// A second user of the same TPM finds the same key.
	b := attest.NewTPMOver(fake.Transport(), logPath)
	raw, err = b.Evidence(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if other := verifyEvidence(t, raw, nil); other.AKPublic != ev.AKPublic {
		t.Error("another attester made another key")
	}

	if err := os.Truncate(logPath, 64<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Evidence(ctx, nil); err == nil {
		t.Error("an event log of 64 MiB was taken")
	}
	for pcr, d := range map[int][]byte{-1: digest[:], 24: digest[:], 9: digest[:31], 10: nil} {
		if err := a.ExtendPCR(ctx, pcr, d); err == nil {
			t.Errorf("extended PCR %d with %d bytes", pcr, len(d))
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.Evidence(cancelled, nil); err == nil {
		t.Error("a cancelled request was served")
	}
}

func TestTPMEnrolment(t *testing.T) {
	a, fake := newTPM(t)
	ctx := testContext(t)
	params, err := a.EnrolParams(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm.ParsePublic(params.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	if err := ak.CheckAttestationKey(); err != nil {
		t.Error(err)
	}
	ek, err := tpm.ParsePublic(params.EKPublic)
	if err != nil {
		t.Fatal(err)
	}
	if ek.CheckAttestationKey() == nil {
		t.Error("the endorsement key passes as an attestation key")
	}
	cert, err := x509.ParseCertificate(params.EKCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(fake.Root); err != nil {
		t.Errorf("endorsement certificate: %v", err)
	}
	certified, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || !certified.Equal(ek.Key) {
		t.Errorf("the certificate is for another key (%T)", cert.PublicKey)
	}

	secret := []byte("0123456789abcdef0123456789abcdef")
	blob, enc, err := tpm.MakeCredential(cert.PublicKey, ak.Name(), secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.ActivateCredential(ctx, &kbs.TPMCredential{CredentialBlob: blob, EncryptedSecret: enc})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Errorf("recovered %x, expected %x", got, secret)
	}

	// A credential for a key that is not in this TPM does not open.
	other := append([]byte(nil), ak.Name()...)
	other[5] ^= 1
	blob, enc, err = tpm.MakeCredential(cert.PublicKey, other, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ActivateCredential(ctx, &kbs.TPMCredential{CredentialBlob: blob, EncryptedSecret: enc}); err == nil {
		t.Error("a credential for another key was opened")
	}
	if _, err := a.ActivateCredential(ctx, &kbs.TPMCredential{CredentialBlob: make([]byte, 5000)}); err == nil {
		t.Error("an oversized credential was taken")
	}
	// Failed attempts leave no sessions behind.
	for range 8 {
		_, _ = a.ActivateCredential(ctx, &kbs.TPMCredential{CredentialBlob: blob, EncryptedSecret: enc})
	}
	raw, err := a.EvidenceWithCredential(ctx, []byte("x"), secret)
	if err != nil {
		t.Fatal(err)
	}
	ev := verifyEvidence(t, raw, []byte("x"))
	if ev.AKCredential != base64.StdEncoding.EncodeToString(secret) {
		t.Errorf("credential in the evidence is %q", ev.AKCredential)
	}
	spki, err := x509.MarshalPKIXPublicKey(ak.Key)
	if err != nil {
		t.Fatal(err)
	}
	if ev.AKPublic != base64.StdEncoding.EncodeToString(spki) {
		t.Error("the quote's key is not the enrolled one")
	}
}
