// Package didtest makes certificate chains for tests.
package didtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// Begin is when the chains begin to be valid, for a year.
var Begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// At is a time when the chains are valid.
var At = Begin.AddDate(0, 6, 0)

// EKU is the extended key usage of the signers.
var EKU = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}

// Authority is a root with one intermediate.
type Authority struct {
	Root, Intermediate *x509.Certificate
	key                crypto.Signer
}

// NewAuthority makes one.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	rootKey, key := NewKey(t), NewKey(t)
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	root := Certificate(t, ca("Test root"), nil, rootKey.Public(), rootKey)
	return &Authority{Root: root, Intermediate: Certificate(t, ca("Test intermediate"), root, key.Public(), rootKey), key: key}
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Certificate makes a certificate of a template; parent nil is itself. What the template leaves out of dates and serial is filled in.
func Certificate(t testing.TB, c, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if c.SerialNumber == nil {
		c.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = Begin, Begin.AddDate(1, 0, 0)
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Leaf is the template of a signer's certificate.
func Leaf() *x509.Certificate {
	return &x509.Certificate{
		Subject:  pkix.Name{CommonName: "Signer (test)", Organization: []string{"Example, Inc."}, Country: []string{"DE"}, Province: []string{"BE"}},
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{EKU},
		DNSNames: []string{"sign.example"}, EmailAddresses: []string{"bob@example.com"},
		URIs:            []*url.URL{{Scheme: "https", Host: "example.com", Path: "/a"}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://accounts.example.com")}},
	}
}

// Issue gives a chain for a key: leaf, intermediate, root.
func (a *Authority) Issue(t testing.TB, leaf *x509.Certificate, pub crypto.PublicKey) []*x509.Certificate {
	t.Helper()
	return []*x509.Certificate{Certificate(t, leaf, a.Intermediate, pub, a.key), a.Intermediate, a.Root}
}
