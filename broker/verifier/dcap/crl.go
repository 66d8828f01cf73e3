package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
)

const maxCRL = 16 << 20

// Critical extensions of a revocation list that change nothing for us: its number and its issuer's key.
var harmlessCRLExtensions = []asn1.ObjectIdentifier{{2, 5, 29, 20}, {2, 5, 29, 35}}

// crl verifies a revocation list of issuer. An old list is noted, not refused.
func crl(what string, data []byte, issuer *x509.Certificate, w *windows) (*x509.RevocationList, error) {
	if len(data) > maxCRL {
		return nil, fmt.Errorf("%s: %d bytes exceed the limit of %d", what, len(data), maxCRL)
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return nil, fmt.Errorf("%s is issued by %q, expected %q", what, list.Issuer.CommonName, issuer.Subject.CommonName)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("%s is not signed by %q: %w", what, issuer.Subject.CommonName, err)
	}
	for _, ext := range list.Extensions {
		if ext.Critical && !ext.Id.Equal(harmlessCRLExtensions[0]) && !ext.Id.Equal(harmlessCRLExtensions[1]) {
			return nil, fmt.Errorf("%s has the unknown critical extension %v", what, ext.Id)
		}
	}
	if list.NextUpdate.IsZero() {
		return nil, fmt.Errorf("%s does not say until when it is good", what)
	}
	w.add(what, list.ThisUpdate, list.NextUpdate)
	return list, nil
}

// checkRevoked looks certificates up in a list of their issuer.
func checkRevoked(list *x509.RevocationList, certs ...*x509.Certificate) error {
	for _, c := range certs {
		for i := range list.RevokedCertificateEntries {
			e := &list.RevokedCertificateEntries[i]
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("certificate of %q, serial %x, was revoked on %s", c.Subject.CommonName, c.SerialNumber, rfc3339(e.RevocationTime))
			}
		}
	}
	return nil
}
