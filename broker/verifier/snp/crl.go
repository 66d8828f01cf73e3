package snp

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/snp"
)

// Values of the claim cert_revocation.
const (
	// RevocationChecked: a current CRL from the configured source does not list the authorities.
	RevocationChecked = "checked"
	// RevocationStapled: only the evidence had a current CRL. The guest chose which one, within the time AMD gave it.
	RevocationStapled = "stapled"
	// RevocationUnavailable starts the claim when there is no current CRL; the reason follows.
	RevocationUnavailable = "unavailable: "
)

// revocation holds ARK and issuer against the CRLs there are. AMD's CRLs are signed by the ARK and list what the ARK issued;
// leaves (all with serial number zero) are on none. A CRL that lists them refuses the evidence whatever its age.
func revocation(ctx context.Context, ark, issuer *x509.Certificate, line snp.Line, vlek bool, stapled []byte, o Options,
) (claim string, fault, err error) {
	why := errors.New("no source of CRLs is configured")
	if o.Certificates != nil {
		data, err := o.Certificates.CRL(ctx, line, vlek)
		if err == nil {
			err = checkCRL(data, ark, issuer, o.Now)
			fault = err
		}
		if err == nil {
			return RevocationChecked, nil, nil
		}
		if r := (*revokedError)(nil); errors.As(err, &r) {
			return "", nil, err
		}
		why = err
	}
	if len(stapled) > 0 {
		err := checkCRL(stapled, ark, issuer, o.Now)
		if err == nil {
			return RevocationStapled, nil, nil
		}
		if r := (*revokedError)(nil); errors.As(err, &r) {
			return "", nil, err
		}
		fault = err
		why = fmt.Errorf("%w; CRL in the evidence: %w", why, err)
	}
	return RevocationUnavailable + why.Error(), fault, nil
}

// ErrCRLDate is in the error of a list that is genuine and not of now.
var ErrCRLDate = errors.New("CRL is")

// revokedError says that an authority is on a CRL, unlike the errors that say that a CRL is of no use.
type revokedError struct{ name, since string }

func (e *revokedError) Error() string { return fmt.Sprintf("%s was revoked %s", e.name, e.since) }

func checkCRL(data []byte, ark, issuer *x509.Certificate, now time.Time) error {
	der, err := snp.DER(data)
	if err != nil {
		return fmt.Errorf("reading the CRL: %w", err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("reading the CRL: %w", err)
	}
	if !bytes.Equal(crl.RawIssuer, ark.RawSubject) {
		return fmt.Errorf("CRL is issued by %q, expected %q", crl.Issuer, ark.Subject)
	}
	if err := crl.CheckSignatureFrom(ark); err != nil {
		return fmt.Errorf("CRL is not signed by %s: %w", ark.Subject.CommonName, err)
	}
	for _, e := range crl.RevokedCertificateEntries {
		for _, c := range []*x509.Certificate{issuer, ark} {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return &revokedError{name: c.Subject.CommonName, since: e.RevocationTime.UTC().Format(time.RFC3339)}
			}
		}
		if critical(e.Extensions) {
			return errors.New("an entry of the CRL has a critical extension, which may change its meaning")
		}
	}
	if critical(crl.Extensions) {
		return errors.New("CRL has a critical extension, which may narrow what it covers")
	}
	if now.Before(crl.ThisUpdate) {
		return fmt.Errorf("%w not valid before %s", ErrCRLDate, crl.ThisUpdate.UTC().Format(time.RFC3339))
	}
	if crl.NextUpdate.IsZero() || now.After(crl.NextUpdate) {
		return fmt.Errorf("%w out of date since %s", ErrCRLDate, crl.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

func critical(extensions []pkix.Extension) bool {
	for _, e := range extensions {
		if e.Critical {
			return true
		}
	}
	return false
}
