// Package certtest makes certificate authorities, certificates and revocation lists for tests.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is an authority.
type CA struct {
	t      testing.TB
	Cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
	crls   int64
}

// New makes a self-signed authority that is good from a day before until a year after now.
func New(t testing.TB, name string, now time.Time) *CA {
	t.Helper()
	ca := &CA{t: t, key: newKey(t)}
	ca.Cert = sign(t, authority(name, now), nil, ca.key, ca.key)
	return ca
}

func authority(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// Under makes an authority below this one.
func (ca *CA) Under(name string, now time.Time) *CA {
	ca.t.Helper()
	ca.serial++
	sub := &CA{t: ca.t, key: newKey(ca.t)}
	template := authority(name, now)
	template.SerialNumber = big.NewInt(1000 + ca.serial)
	sub.Cert = sign(ca.t, template, ca.Cert, sub.key, ca.key)
	return sub
}

// Issue makes a client certificate out of a template, whose serial number, usage and missing dates it fills in.
func (ca *CA) Issue(template x509.Certificate, now time.Time) tls.Certificate {
	ca.t.Helper()
	ca.serial++
	key := newKey(ca.t)
	template.SerialNumber = big.NewInt(100 + ca.serial)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	}
	leaf := sign(ca.t, &template, ca.Cert, key, ca.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// CRL makes a revocation list in PEM that is good until next.
func (ca *CA) CRL(now, next time.Time, change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	ca.t.Helper()
	ca.crls++
	list := &x509.RevocationList{Number: big.NewInt(ca.crls), ThisUpdate: now, NextUpdate: next}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
	}
	if change != nil {
		change(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// PEM is the authority's certificate.
func (ca *CA) PEM() []byte { return CertPEM(ca.Cert) }

// CertPEM encodes a certificate.
func CertPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// WritePair puts a certificate and its key into tls.crt and tls.key of a folder.
func WritePair(t testing.TB, dir string, c tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	Write(t, certFile, CertPEM(c.Leaf))
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	Write(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return certFile, keyFile
}

// Write writes a file and returns its name.
func Write(t testing.TB, name string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a certificate; without a parent it is signed by itself.
func sign(t testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
