package nvidia

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	_ "crypto/sha512" // SHA-384 of certificate ids

	"golang.org/x/crypto/ocsp"
)

const (
	maxOCSP = 64 << 10
	// clockSkew is how far ahead the responder's clock may be.
	clockSkew = 5 * time.Minute
)

// Values of x-nvidia-cert-ocsp-status.
const (
	ocspGood    = "good"
	ocspRevoked = "revoked"
	ocspUnknown = "unknown"
)

var revocationReasons = map[int]string{
	ocsp.Unspecified: "unspecified", ocsp.KeyCompromise: "keyCompromise", ocsp.CACompromise: "cACompromise",
	ocsp.AffiliationChanged: "affiliationChanged", ocsp.Superseded: "superseded",
	ocsp.CessationOfOperation: "cessationOfOperation", ocsp.CertificateHold: "certificateHold",
	ocsp.RemoveFromCRL: "removeFromCRL", ocsp.PrivilegeWithdrawn: "privilegeWithdrawn", ocsp.AACompromise: "aACompromise",
}

// revocation is what responders say of a chain.
type revocation struct {
	status string
	// reason is why a certificate was revoked.
	reason any
	notes  []string
}

// revocation asks for every certificate of a verified chain but the root, beginning with number first. The worst answer
// counts; no answer, or one that cannot be relied on, is unknown. An error means that the caller is out of time.
func (v *local) revocation(ctx context.Context, c chain, first int) (revocation, error) {
	out := revocation{status: ocspGood}
	for i := first; i < len(c)-1; i++ {
		answer, err := v.askOCSP(ctx, c, i)
		if ctx.Err() != nil {
			return out, fmt.Errorf("asking whether %q is revoked: %w", c[i].Subject, ctx.Err())
		}
		switch {
		case err != nil:
			out.notes = append(out.notes, fmt.Sprintf("revocation of %q: %v", c[i].Subject, err))
			if out.status == ocspGood {
				out.status = ocspUnknown
			}
		case answer.Status == ocsp.Revoked:
			reason, known := revocationReasons[answer.RevocationReason]
			if !known {
				reason = fmt.Sprint(answer.RevocationReason)
			}
			out.notes = append(out.notes, fmt.Sprintf("%q was revoked on %s: %s", c[i].Subject,
				answer.RevokedAt.UTC().Format(timeFormat), reason))
			out.status, out.reason = ocspRevoked, reason
		}
	}
	return out, nil
}

func (v *local) askOCSP(ctx context.Context, c chain, i int) (*ocsp.Response, error) {
	cert, issuer := c[i], c[i+1]
	request, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: crypto.SHA384})
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	der, err := v.Collateral.OCSP(ctx, request, responder(c, i))
	if err != nil {
		return nil, err
	}
	return checkOCSP(der, cert, issuer, v.Now)
}

// responder is the address that a certificate names. Devices' own authorities may name none; their issuer's is asked.
// The chain is verified, so the address is NVIDIA's word.
func responder(c chain, i int) string {
	for _, cert := range c[i:] {
		if len(cert.OCSPServer) > 0 {
			return cert.OCSPServer[0]
		}
	}
	return ""
}

// checkOCSP checks that an answer is the issuer's, or that of someone the issuer appointed for answers, is about the
// certificate, and is of now.
func checkOCSP(der []byte, cert, issuer *x509.Certificate, now time.Time) (*ocsp.Response, error) {
	if len(der) > maxOCSP {
		return nil, fmt.Errorf("answer has %d bytes, at most %d are read", len(der), maxOCSP)
	}
	r, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	// The library checks that the issuer signed the responder's certificate, and leaves to us what it is for: without
	// this every certificate of that issuer could answer for the others.
	if d := r.Certificate; d != nil && !d.Equal(issuer) {
		switch {
		case !slices.Contains(d.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return nil, fmt.Errorf("answer is signed by %q, which is not for signing answers", d.Subject)
		case now.Before(d.NotBefore) || now.After(d.NotAfter):
			return nil, fmt.Errorf("certificate of the responder %q is not valid at %s", d.Subject, now.UTC().Format(timeFormat))
		}
	}
	switch {
	case r.ThisUpdate.After(now.Add(clockSkew)):
		return nil, fmt.Errorf("answer is of %s, which is to come", r.ThisUpdate.UTC().Format(timeFormat))
	case r.NextUpdate.IsZero():
		return nil, errors.New("answer does not say until when it holds")
	case now.After(r.NextUpdate):
		return nil, fmt.Errorf("answer held until %s", r.NextUpdate.UTC().Format(timeFormat))
	case r.Status != ocsp.Good && r.Status != ocsp.Revoked:
		return nil, errors.New("responder does not know the certificate")
	}
	return r, nil
}
