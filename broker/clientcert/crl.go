package clientcert

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// parseCRLs reads one DER list or any number of PEM ones. Lists that tell of a part only (delta lists, lists with critical
// extensions, which may limit them) are refused: what they leave out would count as good.
func parseCRLs(text []byte) ([]*x509.RevocationList, error) {
	var ders [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("PEM block is %.32q, want X509 CRL", block.Type)
		}
		ders = append(ders, block.Bytes)
	}
	if len(ders) == 0 {
		ders = [][]byte{text}
	}
	var lists []*x509.RevocationList
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		if list.NextUpdate.IsZero() {
			return nil, fmt.Errorf("the list of %.128q does not say until when it is good", list.Issuer)
		}
		for _, ext := range list.Extensions {
			if ext.Critical {
				return nil, fmt.Errorf("the list of %.128q has the critical extension %s, want a full list without any", list.Issuer, ext.Id)
			}
		}
		lists = append(lists, list)
	}
	return lists, nil
}

// anyGood wants one chain none of whose certificates is revoked.
func (t *trust) anyGood(chains [][]*x509.Certificate, now time.Time) error {
	if len(t.crls) == 0 {
		return nil
	}
	var why []error
	for _, chain := range chains {
		err := t.good(chain, now)
		if err == nil {
			return nil
		}
		why = append(why, err)
	}
	return errors.Join(why...)
}

func (t *trust) good(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain[:len(chain)-1] {
		if err := t.revocation(cert, chain[i+1], now); err != nil {
			return err
		}
	}
	return nil
}

// revocation looks a certificate up in the lists of its issuer. One revocation counts, whatever other lists say, also in a list that
// has ended; without a current list the certificate does not count.
func (t *trust) revocation(cert, issuer *x509.Certificate, now time.Time) error {
	current := false
	for _, list := range t.crls {
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) || list.CheckSignatureFrom(issuer) != nil {
			continue
		}
		for _, r := range list.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return fmt.Errorf("certificate %s of %.128q was revoked at %s", cert.SerialNumber.Text(16), issuer.Subject, r.RevocationTime.UTC().Format(time.RFC3339))
			}
		}
		if !now.Before(list.ThisUpdate) && now.Before(list.NextUpdate) {
			current = true
		}
	}
	if !current {
		return fmt.Errorf("there is no current revocation list of %.128q", issuer.Subject)
	}
	return nil
}
