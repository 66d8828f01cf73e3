// Package fakedcap makes Intel quotes and collateral under a root of its own, for tests of those who verify them.
//
// The names in its certificates are Intel's, because a verifier looks at them; the keys are made anew each time.
package fakedcap

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
)

// Cert is a certificate with its key.
type Cert struct {
	*x509.Certificate
	Key *ecdsa.PrivateKey
}

// PEM is the certificate as PEM.
func (c *Cert) PEM() []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) }

// World is an Intel with one platform. Tests change its members before they ask for a quote or collateral.
type World struct {
	t   testing.TB
	Now time.Time

	Root, CA, PCK, Signer *Cert
	// TCBInfo and QEIdentity are what Collateral signs, with lists of TCB levels newest first.
	TCBInfo, QEIdentity map[string]any
	// Revoked are the certificates on the lists.
	Revoked []*Cert
	// CRLUntil is when the revocation lists expire.
	CRLUntil time.Time
}

// SVNs of the platform: those of its PCK certificate, and of its TDX module (version 1).
var (
	Components = [16]uint8{5, 5, 2, 2, 3, 1, 0, 3}
	TCBSVN     = [16]uint8{5, 1, 2}
)

// Values of the platform.
const (
	PCESVN = 11
	FMSPC  = "00AABBCC0000"
	QESVN  = 8
)

// New makes a world in which a TDX quote is up to date at now.
func New(t testing.TB, now time.Time) *World {
	w := &World{t: t, Now: now.UTC().Truncate(time.Second), CRLUntil: now.Add(30 * 24 * time.Hour).UTC().Truncate(time.Second)}
	w.Root = w.Issue("Intel SGX Root CA", nil, nil)
	w.CA = w.Issue("Intel SGX PCK Platform CA", w.Root, nil)
	w.Signer = w.Issue("Intel SGX TCB Signing", w.Root, nil)
	w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, nil)
	w.UseTDX()
	return w
}

// Issue makes a certificate by an issuer, nil for itself. Edit, if any, may change the template.
func (w *World) Issue(name string, issuer *Cert, edit func(*x509.Certificate)) *Cert {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	w.must(err)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: w.Now.Add(-24 * time.Hour), NotAfter: w.Now.Add(365 * 24 * time.Hour), BasicConstraintsValid: true}
	switch name {
	case "Intel SGX PCK Certificate":
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
		tmpl.ExtraExtensions = []pkix.Extension{{Id: quote.OIDSGXExtension, Value: w.Extension()}}
	case "Intel SGX TCB Signing":
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	default:
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	if edit != nil {
		edit(tmpl)
	}
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	w.must(err)
	cert, err := x509.ParseCertificate(der)
	w.must(err)
	return &Cert{cert, key}
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// member is one (OID, value) pair of the PCK extension.
type member struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

func (w *World) member(value any, arcs ...int) member {
	w.t.Helper()
	der, err := asn1.Marshal(value)
	w.must(err)
	return member{append(append(asn1.ObjectIdentifier{}, quote.OIDSGXExtension...), arcs...), asn1.RawValue{FullBytes: der}}
}

// Extension is the PCK extension of the platform.
func (w *World) Extension() []byte {
	w.t.Helper()
	var tcb []member
	for i, n := range Components {
		tcb = append(tcb, w.member(int(n), 2, i+1))
	}
	tcb = append(tcb, w.member(PCESVN, 2, 17), w.member(Components[:], 2, 18))
	der, err := asn1.Marshal([]member{
		w.member([]byte("0123456789abcdef"), 1), w.member(tcb, 2), w.member([]byte{0, 0}, 3),
		w.member([]byte{0x00, 0xaa, 0xbb, 0xcc, 0x00, 0x00}, 4), w.member(asn1.Enumerated(1), 5),
		w.member([]byte("platform-instanc"), 6),
		w.member([]member{w.member(true, 7, 1), w.member(false, 7, 2), w.member(true, 7, 3)}, 7),
	})
	w.must(err)
	return der
}

// Source is a dcap.Source that always has this answer.
type Source struct {
	Answer *dcap.Collateral
	Err    error
	// FMSPC, CA and TEE are what was asked for last.
	FMSPC, CA, TEE string
}

// Collateral is part of dcap.Source.
func (s *Source) Collateral(_ context.Context, fmspc, ca, tee string) (*dcap.Collateral, error) {
	s.FMSPC, s.CA, s.TEE = fmspc, ca, tee
	return s.Answer, s.Err
}
