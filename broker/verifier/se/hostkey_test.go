package se_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/se"
)

// authority is a certificate with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func ibmName(unit, locality string) pkix.Name {
	const ibm = "International Business Machines Corporation"
	return pkix.Name{
		Country: []string{"US"}, Organization: []string{ibm}, CommonName: ibm, Province: []string{"New York"}, Locality: []string{locality},
		OrganizationalUnit: []string{unit},
	}
}

// issue makes a certificate; change may alter what it says.
func issue(t *testing.T, serial int64, subject pkix.Name, by *authority, curve elliptic.Curve,
	change func(c *x509.Certificate)) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		SubjectKeyId: []byte{byte(serial), 1, 2, 3}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(template)
	}
	parent, signer := template, crypto.Signer(key)
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func ca(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
}

// revoke makes a list of an authority's.
func revoke(t *testing.T, by *authority, change func(l *x509.RevocationList), serials ...int64) *x509.RevocationList {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: now.Add(-time.Minute)})
	}
	if change != nil {
		change(template)
	}
	issuer := *by.cert
	issuer.KeyUsage |= x509.KeyUsageCRLSign // IBM's signing key signs lists without saying so
	der, err := x509.CreateRevocationList(rand.Reader, template, &issuer, by.key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestHostKeyTrust(t *testing.T) {
	root := issue(t, 1, pkix.Name{CommonName: "root"}, nil, elliptic.P256(), ca)
	inter := issue(t, 2, pkix.Name{CommonName: "intermediate"}, root, elliptic.P256(), ca)
	name := ibmName("IBM Z Host Key Signing Service", "Poughkeepsie")
	signer := issue(t, 3, name, inter, elliptic.P384(), nil)
	host := issue(t, 4, ibmName("IBM Z Host Key", "Armonk"), signer, elliptic.P521(), nil)
	armonk := issue(t, 5, ibmName("IBM Z Host Key Signing Service", "Armonk"), inter, elliptic.P384(), nil)
	impostor := issue(t, 3, name, nil, elliptic.P384(), nil)
	lists := func() []*x509.RevocationList {
		return []*x509.RevocationList{revoke(t, root, nil), revoke(t, inter, nil), revoke(t, signer, nil)}
	}
	trust := func() *verifier.HostKeyTrust {
		return &verifier.HostKeyTrust{
			Roots: []*x509.Certificate{root.cert}, Certificates: []*x509.Certificate{signer.cert, inter.cert}, CRLs: lists(), Now: now,
		}
	}
	key, err := trust().Verify(host.cert)
	if err != nil || !key.Equal(&host.key.PublicKey) {
		t.Fatalf("good: %v", err)
	}
	moved := trust()
	moved.Certificates[0] = armonk.cert
	moved.CRLs[2] = revoke(t, armonk, nil)
	if _, err := moved.Verify(issue(t, 6, ibmName("IBM Z Host Key", "Armonk"), armonk, elliptic.P521(), nil).cert); err != nil {
		t.Errorf("signing key of Armonk: %v", err)
	}
	lax := trust()
	lax.CRLs, lax.AllowMissingCACRLs = lax.CRLs[2:], true
	if _, err := lax.Verify(host.cert); err != nil {
		t.Errorf("without the authorities' lists, allowed: %v", err)
	}
	for what, c := range map[string]struct {
		host   *authority
		change func(h *verifier.HostKeyTrust)
		why    string
	}{
		"no lists":            {host, func(h *verifier.HostKeyTrust) { h.CRLs = nil }, "no revocation list"},
		"no list of the root": {host, func(h *verifier.HostKeyTrust) { h.CRLs = h.CRLs[1:] }, "no revocation list"},
		"no list of the signer": {host, func(h *verifier.HostKeyTrust) { h.CRLs, h.AllowMissingCACRLs = h.CRLs[:2], true },
			"no revocation list"},
		"intermediate revoked": {host, func(h *verifier.HostKeyTrust) { h.CRLs[0] = revoke(t, root, nil, 2) }, "was revoked"},
		"signer revoked":       {host, func(h *verifier.HostKeyTrust) { h.CRLs[1] = revoke(t, inter, nil, 3) }, "was revoked"},
		"signer revoked, lax": {host, func(h *verifier.HostKeyTrust) {
			h.CRLs[1], h.AllowMissingCACRLs = revoke(t, inter, nil, 3), true
		}, "was revoked"},
		"host revoked": {host, func(h *verifier.HostKeyTrust) { h.CRLs[2] = revoke(t, signer, nil, 4) }, "was revoked"},
		"host revoked by the other": {host, func(h *verifier.HostKeyTrust) { h.CRLs = append(h.CRLs, revoke(t, signer, nil, 4)) },
			"was revoked"},
		"old list": {host, func(h *verifier.HostKeyTrust) {
			h.CRLs[2] = revoke(t, signer, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Minute) })
		}, "valid from"},
		"critical in list": {host, func(h *verifier.HostKeyTrust) {
			h.CRLs[2] = revoke(t, signer, func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
			})
		}, "critical extension"},
		"list by an impostor": {host, func(h *verifier.HostKeyTrust) { h.CRLs[2] = revoke(t, impostor, nil) }, "revocation list of"},
		"no signer":           {host, func(h *verifier.HostKeyTrust) { h.Certificates = h.Certificates[1:] }, "0 certificates"},
		"two signers": {host, func(h *verifier.HostKeyTrust) { h.Certificates = append(h.Certificates, armonk.cert) },
			"2 certificates"},
		"no intermediate": {host, func(h *verifier.HostKeyTrust) { h.Certificates = h.Certificates[:1] }, "IBM signing key"},
		"no root":         {host, func(h *verifier.HostKeyTrust) { h.Roots = nil }, "IBM signing key"},
		"signer as root":  {host, func(h *verifier.HostKeyTrust) { h.Roots = []*x509.Certificate{signer.cert} }, "IBM signing key"},
		"intermediate as root": {host, func(h *verifier.HostKeyTrust) { h.Roots = []*x509.Certificate{inter.cert} },
			"a chain of 2"},
		"impostor":     {issue(t, 7, pkix.Name{CommonName: "x"}, impostor, elliptic.P521(), nil), nil, "host-key document"},
		"other issuer": {issue(t, 8, pkix.Name{CommonName: "x"}, inter, elliptic.P521(), nil), nil, "issuer = "},
		"P-384 key":    {issue(t, 9, pkix.Name{CommonName: "x"}, signer, elliptic.P384(), nil), nil, "expected EC P-521"},
		"expired host": {issue(t, 9, pkix.Name{CommonName: "x"}, signer, elliptic.P521(),
			func(c *x509.Certificate) { c.NotAfter = now }), nil, "valid from"},
		"future host": {issue(t, 9, pkix.Name{CommonName: "x"}, signer, elliptic.P521(),
			func(c *x509.Certificate) { c.NotBefore = now.Add(1e9) }), nil, "valid from"},
		"all is over": {host, func(h *verifier.HostKeyTrust) { h.Now = now.Add(2 * time.Hour) }, "expired"},
		"critical host": {issue(t, 9, pkix.Name{CommonName: "x"}, signer, elliptic.P521(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), nil, "critical extension"},
	} {
		h := trust()
		if c.change != nil {
			c.change(h)
		}
		if _, err := h.Verify(c.host.cert); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: got %v, expected a refusal with %q", what, err, c.why)
		}
	}
}
