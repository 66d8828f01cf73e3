package se

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// HostKeyTrust says which host-key documents are IBM's: host key ← IBM signing key ← intermediate … ← root. Nothing is
// fetched: the revocation list of every issuer must be given.
type HostKeyTrust struct {
	// Roots are the authorities trusted.
	Roots []*x509.Certificate
	// Certificates are the IBM signing key's, exactly one, and the intermediates'.
	Certificates []*x509.Certificate
	CRLs         []*x509.RevocationList
	// AllowMissingCACRLs accepts that an issuer above the signing key has no list. One that has is still looked at.
	AllowMissingCACRLs bool
	// Now is the time of certificates and lists.
	Now time.Time
}

// Verify checks a host-key document and returns the key.
func (t *HostKeyTrust) Verify(document *x509.Certificate) (*ecdsa.PublicKey, error) {
	signer, err := t.signer()
	if err != nil {
		return nil, err
	}
	if err := t.checkSigner(signer); err != nil {
		return nil, fmt.Errorf("IBM signing key: %w", err)
	}
	if err := t.checkDocument(document, signer); err != nil {
		return nil, fmt.Errorf("host-key document: %w", err)
	}
	key, ok := document.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P521() {
		return nil, fmt.Errorf("host-key document: a key of type %T, expected EC P-521", document.PublicKey)
	}
	return key, nil
}

func (t *HostKeyTrust) checkDocument(document, signer *x509.Certificate) error {
	if err := t.checkDates(document.NotBefore, document.NotAfter); err != nil {
		return err
	}
	if u := document.UnhandledCriticalExtensions; len(u) > 0 {
		return fmt.Errorf("a critical extension %v, which nobody here understands", u[0])
	}
	if !sameIBMName(document.Issuer, signer.Subject) {
		return fmt.Errorf("issuer = %q, expected %q", document.Issuer, signer.Subject)
	}
	if id := document.AuthorityKeyId; len(id) > 0 && !bytes.Equal(id, signer.SubjectKeyId) {
		return fmt.Errorf("authority key id = %x, expected %x", id, signer.SubjectKeyId)
	}
	// Not CheckSignatureFrom: the signing key's certificate is not that of an authority.
	if err := signer.CheckSignature(document.SignatureAlgorithm, document.RawTBSCertificate, document.Signature); err != nil {
		return err
	}
	return t.checkRevoked(document, signer, true)
}

// checkSigner follows the signing key to a root and looks at the lists on the way.
func (t *HostKeyTrust) checkSigner(signer *x509.Certificate) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range t.Roots {
		roots.AddCert(c)
	}
	for _, c := range t.Certificates {
		if c != signer {
			intermediates.AddCert(c)
		}
	}
	chains, err := signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: t.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	var faults []error
	for _, chain := range chains {
		if err := t.checkChain(chain); err != nil {
			faults = append(faults, err)
			continue
		}
		return nil
	}
	return errors.Join(faults...)
}

func (t *HostKeyTrust) checkChain(chain []*x509.Certificate) error {
	if len(chain) < 3 {
		return fmt.Errorf("a chain of %d certificates, expected an intermediate between signing key and root", len(chain))
	}
	for i, c := range chain[:len(chain)-1] {
		if err := t.checkRevoked(c, chain[i+1], !t.AllowMissingCACRLs); err != nil {
			return err
		}
	}
	return nil
}

// checkRevoked looks for c in every current list of its issuer.
func (t *HostKeyTrust) checkRevoked(c, issuer *x509.Certificate, required bool) error {
	found := false
	var faults []error
	for _, list := range t.CRLs {
		if !sameIBMName(list.Issuer, issuer.Subject) {
			continue
		}
		if err := t.checkList(list, issuer); err != nil {
			faults = append(faults, fmt.Errorf("revocation list of %q: %w", list.Issuer, err))
			continue
		}
		found = true
		for _, entry := range list.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("%q, serial number %x, was revoked at %s",
					c.Subject, c.SerialNumber, entry.RevocationTime.UTC().Format(time.RFC3339))
			}
		}
	}
	if found {
		return nil
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	if !required {
		return nil
	}
	return fmt.Errorf("no revocation list of %q is given", issuer.Subject)
}

func (t *HostKeyTrust) checkList(list *x509.RevocationList, issuer *x509.Certificate) error {
	if err := t.checkDates(list.ThisUpdate, list.NextUpdate); err != nil {
		return err
	}
	if id := list.AuthorityKeyId; len(id) > 0 && !bytes.Equal(id, issuer.SubjectKeyId) {
		return fmt.Errorf("authority key id = %x, expected %x", id, issuer.SubjectKeyId)
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return fmt.Errorf("a critical extension %v, which nobody here understands", e.Id)
		}
	}
	return issuer.CheckSignature(list.SignatureAlgorithm, list.RawTBSRevocationList, list.Signature)
}

func (t *HostKeyTrust) checkDates(from, to time.Time) error {
	if t.Now.Before(from) || !t.Now.Before(to) {
		return fmt.Errorf("valid from %s to %s, it is %s",
			from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339), t.Now.UTC().Format(time.RFC3339))
	}
	return nil
}

// signer finds the IBM signing key by its name; the chain says whether it is genuine.
func (t *HostKeyTrust) signer() (*x509.Certificate, error) {
	var found []*x509.Certificate
	for _, c := range t.Certificates {
		if isIBMSigner(c.Subject) {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d certificates of an IBM signing key among %d, expected 1", len(found), len(t.Certificates))
	}
	return found[0], nil
}

const ibm = "International Business Machines Corporation"

// isIBMSigner demands six parts and no others. IBM moved from Poughkeepsie to Armonk.
func isIBMSigner(n pkix.Name) bool {
	one := func(got []string, want string) bool { return len(got) == 1 && got[0] == want }
	return len(n.Names) == 6 && n.CommonName == ibm && one(n.Organization, ibm) && one(n.Country, "US") &&
		one(n.Province, "New York") && (one(n.Locality, "Poughkeepsie") || one(n.Locality, "Armonk")) &&
		len(n.OrganizationalUnit) == 1 && strings.HasSuffix(n.OrganizationalUnit[0], "Key Signing Service")
}

// sameIBMName compares names regardless of order, with both localities the same: IBM's lists and certificates differ so.
func sameIBMName(a, b pkix.Name) bool {
	return slices.Equal(nameParts(a), nameParts(b))
}

func nameParts(n pkix.Name) []string {
	var out []string
	for _, p := range n.Names {
		text := fmt.Sprint(p.Value)
		if p.Type.Equal([]int{2, 5, 4, 7}) && text == "Armonk" {
			text = "Poughkeepsie"
		}
		out = append(out, p.Type.String()+"="+text)
	}
	slices.Sort(out)
	return out
}
