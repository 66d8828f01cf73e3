// Package dcap verifies the signatures of Intel quotes and judges the platform they were made on, as Intel's Data Center
// Attestation Primitives describe (attestation-service.md section 4.5, evidence-layouts.md sections 2.4 to 2.7).
//
// Verify is a function of its arguments. It checks, in this order: the PCK certificates down from the pinned Intel root; the
// quoting enclave's report under the PCK key; that this report vouches for the attestation key; the quote under that key.
// With collateral it goes on: TCB signing chains, the signatures over the exact bytes of TCB info and QE identity, both
// revocation lists (signature, date, and every certificate used is looked up), the identity of the quoting enclave and of
// the TDX module, and the TCB level. A broken signature, a revoked certificate or TCB, another root, a certificate that is
// not yet valid, and a TCB below every level are errors. What is out of date is not: it becomes the claims tcb_status and
// collateral_expiration_status, and the policy decides.
//
// Stricter than upstream: a chain's root must have the pinned key, whatever its name; signers must have the names Intel
// gives them, so that one Intel certificate cannot stand in for another; revocation lists with unknown critical extensions
// are refused. The claim collateral_status is ours: "current", "expired: …" or "unavailable: …".
package dcap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloister/cloister/tee/quote"
)

// ErrNoChain is wrapped by the error for a quote that names its platform by PPID: it may be genuine, but the certificates
// that would tell are not in it.
var ErrNoChain = errors.New("the quote carries no PCK certificate chain")

// ErrNoCollateral is wrapped by the error for a quote whose signatures are good when the collateral is not to be had.
var ErrNoCollateral = errors.New("no collateral")

// Options is what a quote is held against.
type Options struct {
	// Now is the time certificates and collateral are checked at. It must be set.
	Now time.Time
	// Collateral delivers what Intel publishes. Nil means there is none.
	Collateral Source
	// AllowNoCollateral turns missing collateral from an error into the claim collateral_status "unavailable: why", without
	// the claims tcb_status and collateral_expiration_status. Nothing is then known about revocation, and nothing about
	// which enclave vouched for the attestation key: whoever owns any genuine Intel platform may have made the quote. It is
	// for looking at saved evidence, and for policies that read collateral_status.
	AllowNoCollateral bool
	// Root is the trust anchor; nil is Intel's SGX Root CA. Other values are for tests.
	Root *x509.Certificate
}

// Result is what is known about the platform of a quote.
type Result struct {
	// Claims are those of section 4.5, at the top level of a verifier's claims.
	Claims map[string]any
	// PCK is what the platform's certificate says.
	PCK *quote.PCK
	// Status is the merged TCB status, empty without collateral.
	Status Status
}

// Verify checks a quote and judges its platform.
func Verify(ctx context.Context, q *quote.Quote, o Options) (*Result, error) {
	if o.Now.IsZero() {
		return nil, errors.New("verifying quote: no time to check certificates at")
	}
	root, err := o.root()
	if err != nil {
		return nil, err
	}
	w := &windows{now: o.Now}
	chain, err := pckChain(q, root, w)
	if err != nil {
		return nil, err
	}
	if err := checkSignatures(q, chain.leaf); err != nil {
		return nil, err
	}
	r := &Result{Claims: platformClaims(chain, root), PCK: chain.pck}
	c, err := fetch(ctx, q, chain, o.Collateral)
	if err != nil {
		if !o.AllowNoCollateral {
			return nil, err
		}
		r.Claims["collateral_status"] = "unavailable: " + strings.TrimPrefix(err.Error(), ErrNoCollateral.Error()+": ")
		if why := w.expired(); why != "" {
			r.Claims["collateral_expiration_status"] = "1"
		}
		return r, nil
	}
	j, err := judge(q, chain, root, c, w)
	if err != nil {
		return nil, err
	}
	r.Status = j.status
	j.addClaims(r.Claims, w)
	return r, nil
}

// fetch gets the collateral of a platform, all of it or an error.
func fetch(ctx context.Context, q *quote.Quote, chain *pckCerts, source Source) (*Collateral, error) {
	if source == nil {
		return nil, fmt.Errorf("%w: no source of it is configured", ErrNoCollateral)
	}
	tee := TEESGX
	if q.TEE == quote.TDX {
		tee = TEETDX
	}
	fmspc := strings.ToUpper(hex.EncodeToString(chain.pck.FMSPC))
	c, err := source.Collateral(ctx, fmspc, chain.ca, tee)
	if err != nil {
		return nil, fmt.Errorf("%w: %s platform with FMSPC %s: %w", ErrNoCollateral, tee, fmspc, err)
	}
	if c == nil {
		return nil, fmt.Errorf("%w: %s platform with FMSPC %s is unknown", ErrNoCollateral, tee, fmspc)
	}
	for _, part := range []struct {
		name string
		data []byte
	}{
		{"TCB info", c.TCBInfo}, {"TCB info issuer chain", c.TCBInfoIssuerChain},
		{"QE identity", c.QEIdentity}, {"QE identity issuer chain", c.QEIdentityIssuerChain},
		{"PCK CRL", c.PCKCRL}, {"root CRL", c.RootCRL},
	} {
		if len(part.data) == 0 {
			return nil, fmt.Errorf("%w: that of the %s platform with FMSPC %s lacks the %s", ErrNoCollateral, tee, fmspc, part.name)
		}
	}
	return c, nil
}

// checkSignatures follows the trust from the PCK key to the quote's body.
func checkSignatures(q *quote.Quote, leaf *x509.Certificate) error {
	pck, err := p256Key(leaf)
	if err != nil {
		return err
	}
	if !verifyRaw(pck, q.QEReport.Raw, q.QESignature) {
		return errors.New("QE report signature is not by the key of the PCK certificate")
	}
	return CheckBinding(q)
}

// CheckBinding checks what a quote says of itself: the QE report vouches for the attestation key, and this key signed the
// quote. It is no proof of anything before the QE report's signature is known to be by a PCK key, which Verify sees to.
func CheckBinding(q *quote.Quote) error {
	binding := sha256.Sum256(append(bytes.Clone(q.AttestationKey), q.QEAuth...))
	want := append(binding[:], make([]byte, 32)...)
	if !bytes.Equal(q.QEReport.ReportData, want) {
		return fmt.Errorf("QE report data = %x, expected %x: the quoting enclave vouches for another attestation key",
			q.QEReport.ReportData, want)
	}
	key, err := pointKey(q.AttestationKey)
	if err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	if !verifyRaw(key, q.Signed, q.Signature) {
		return errors.New("quote signature is not by the attestation key")
	}
	return nil
}
