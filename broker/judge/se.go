package judge

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/tee/se"
)

// se judges a measurement of IBM Secure Execution, which only who asked for it can: it is a MAC under his key.
func (j *judging) se() {
	e, err := se.ParseEvidence(j.Evidence)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	key := j.Key
	for _, c := range j.Certificates {
		if bytes.Contains(c, []byte("PRIVATE KEY")) {
			key = c
			continue
		}
		j.refuse("a file given beside the evidence is no private key, expected the measurement key alone")
		return
	}
	if key == nil {
		j.open(ParseOnly, "no measurement key given, expected the private key that encr_measurement_key is for, by --key")
		return
	}
	private, err := verifier.ParseMeasurementKey(key)
	if err != nil {
		j.refuse("the measurement key: %v", err)
		return
	}
	claims, err := verifier.Verify(j.ctx, j.Evidence, verifier.Options{MeasurementKey: private, Now: j.Time, Offline: true})
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.addClaims(claims)
	userData := e.UserData
	j.claim("user_data", hex.EncodeToString(userData))
	j.note("that the request went to a machine of IBM's is what its host-key documents tell (--tee se-hkd), expected to be checked " +
		"when it was made")
	j.bindReportData(userData)
	j.noInitData("Secure Execution")
}

// hostKey judges a host-key document: host key, IBM signing key, intermediates, root, and the lists of each.
func (j *judging) hostKey() {
	document := j.certificate("the host-key document", j.Evidence)
	trust := verifier.HostKeyTrust{}
	if root := j.certificate("the root", j.Root); root != nil {
		trust.Roots = append(trust.Roots, root)
	}
	issued := issuedAll(j.Evidence, j.Root)
	for _, data := range append(j.Issuers[:len(j.Issuers):len(j.Issuers)], j.Certificates...) {
		certs, err := certificates(data)
		if err != nil {
			j.refuse("a certificate cannot be read: %v", err)
			continue
		}
		for _, c := range certs {
			issued = append(issued, c.NotBefore)
			if selfSigned(c) && !strings.HasSuffix(strings.Join(c.Subject.OrganizationalUnit, ""), "Key Signing Service") {
				trust.Roots = append(trust.Roots, c)
			} else {
				trust.Certificates = append(trust.Certificates, c)
			}
		}
	}
	lists := 0
	for _, data := range append(j.CRLs[:len(j.CRLs):len(j.CRLs)], j.IssuerCRLs...) {
		list := j.revocationList(data)
		if list == nil {
			continue
		}
		lists++
		trust.CRLs = append(trust.CRLs, list)
		issued = append(issued, list.ThisUpdate)
	}
	if document == nil || len(j.bad) > 0 {
		return
	}
	if len(trust.Roots) == 0 {
		j.open(ParseOnly, "no root given, expected the authority of IBM's signing keys by --cert: none is built in")
		return
	}
	for _, r := range trust.Roots {
		j.trusted(r.Subject.String(), fingerprint(r), true)
	}
	trust.Now = j.at(issued...)
	j.checkHostKey(trust, document, lists)
}

func (j *judging) checkHostKey(trust verifier.HostKeyTrust, document *x509.Certificate, lists int) {
	if _, err := trust.Verify(document); err != nil {
		trust.AllowMissingCACRLs = true
		if _, without := trust.Verify(document); without != nil {
			if lists == 0 {
				j.note("no revocation list given, expected that of every issuer")
			}
			j.refuse("%v", err)
			return
		}
		j.note("revocation was checked only as far as lists were given: %v", err)
	}
	j.claim("subject", document.Subject.String())
	j.claim("issuer", document.Issuer.String())
	j.claim("valid_until", document.NotAfter.UTC().Format(time.RFC3339))
}
