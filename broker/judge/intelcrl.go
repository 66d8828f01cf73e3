package judge

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/cloister/cloister/tee/quote"
)

// intelLists looks the certificates of a quote, whose chain is known to be good, up in the lists given beside the collateral. A list
// must be of one of these certificates' issuers: another would prove nothing while looking as if it did.
func (j *judging) intelLists(q *quote.Quote, now time.Time) {
	var chain []*x509.Certificate
	text, _ := q.Certification.PEMChain()
	for block, rest := pem.Decode(text); block != nil && len(chain) < maxBlocks; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			chain = append(chain, c)
		}
	}
	for _, data := range j.CRLs {
		list := j.revocationList(data)
		if list == nil {
			continue
		}
		var issuer *x509.Certificate
		for _, c := range chain {
			if bytes.Equal(c.RawSubject, list.RawIssuer) {
				issuer = c
			}
		}
		if issuer == nil {
			j.refuse("revocation list is of %q, expected one of an issuer in the quote's chain", list.Issuer.CommonName)
			continue
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			j.refuse("revocation list is not signed by %q: %v", issuer.Subject.CommonName, err)
			continue
		}
		if now.Before(list.ThisUpdate) || now.After(list.NextUpdate) {
			j.outdated("revocation list of %q is of %s to %s, expected one of %s", list.Issuer.CommonName,
				list.ThisUpdate.UTC().Format(time.RFC3339), list.NextUpdate.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		j.revokedBy(list, chain)
	}
}

func (j *judging) revokedBy(list *x509.RevocationList, chain []*x509.Certificate) {
	for _, c := range chain {
		for _, e := range list.RevokedCertificateEntries {
			if bytes.Equal(c.RawIssuer, list.RawIssuer) && e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				j.refuse("certificate of %q, serial %x, was revoked on %s, expected one that is not", c.Subject.CommonName, c.SerialNumber,
					e.RevocationTime.UTC().Format(time.RFC3339))
			}
		}
	}
}

// listsUnused says that the lists given are not looked at, for kinds of evidence without certificates that are on lists.
func (j *judging) listsUnused() {
	switch j.TEE {
	case "snp", "tdx", "sgx", "dcap", "eventlog", "az-snp-vtpm", "az-snp-raw", "az-tdx-vtpm", "az-tdx-raw", "se-hkd":
		return
	}
	if n := len(j.CRLs) + len(j.IssuerCRLs); n > 0 {
		j.note("%d revocation lists were not used: expected none beside %s evidence", n, j.TEE)
	}
}
