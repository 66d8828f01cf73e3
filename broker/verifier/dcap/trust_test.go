package dcap_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/test/fakedcap"
)

// TestTrust swaps certificates, lists and signatures. Every case but those marked good must be refused.
func TestTrust(t *testing.T) {
	type (
		world = *fakedcap.World
		coll  = *dcap.Collateral
		spec  = fakedcap.Spec
	)
	other := fakedcap.New(t, now)
	concat := func(c ...*fakedcap.Cert) (out []byte) {
		for _, c := range c {
			out = append(out, c.PEM()...)
		}
		return out
	}
	critical := func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	}
	later := func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }
	for name, c := range map[string]struct {
		spec       func(world) spec
		collateral func(world, coll)
		fault      string
	}{
		"other world": {spec: func(*fakedcap.World) fakedcap.Spec {
			return spec{Chain: concat(other.PCK, other.CA, other.Root)}
		}, fault: "another key"},
		"own root":       {spec: func(w world) spec { return spec{Chain: concat(w.PCK, w.CA, other.Root)} }, fault: "another key"},
		"no root":        {spec: func(w world) spec { return spec{Chain: concat(w.PCK, w.CA)} }, fault: "2 certificates"},
		"reverse":        {spec: func(w world) spec { return spec{Chain: concat(w.Root, w.CA, w.PCK)} }, fault: "another key"},
		"CA of other":    {spec: func(w world) spec { return spec{Chain: concat(w.PCK, other.CA, w.Root)} }, fault: "not signed by"},
		"leaf of other":  {spec: func(w world) spec { return spec{Chain: concat(other.PCK, w.CA, w.Root)} }, fault: "not signed by"},
		"signer as CA":   {spec: func(w world) spec { return spec{Chain: concat(w.PCK, w.Signer, w.Root)} }, fault: "TCB Signing"},
		"signer as leaf": {spec: func(w world) spec { return spec{Chain: concat(w.Signer, w.CA, w.Root)} }, fault: "TCB Signing"},
		"empty chain":    {spec: func(w world) spec { return spec{Chain: []byte("x")} }, fault: "no certificate"},
		"a key as chain": {spec: func(w world) spec {
			return spec{Chain: bytes.ReplaceAll(w.PCK.PEM(), []byte("CERTIFICATE"), []byte("PRIVATE KEY"))}
		}, fault: "PRIVATE KEY"},
		"certification 2": {spec: func(w world) spec { return spec{CertType: 2} }, fault: "no PCK certificate chain"},
		"PCK from later": {spec: func(w world) spec {
			w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, later)
			return spec{}
		}, fault: "is valid from"},
		"PCK with critical extension": {spec: func(w world) spec {
			w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, critical)
			return spec{}
		}, fault: "critical"},
		"PCK without extension": {spec: func(w world) spec {
			w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, func(c *x509.Certificate) { c.ExtraExtensions = nil })
			return spec{}
		}, fault: "no Intel SGX extension"},
		"PCK by a PCK": {spec: func(w world) spec {
			ca := w.Issue("Intel SGX PCK Platform CA", w.Root, func(c *x509.Certificate) {
				c.IsCA, c.KeyUsage, c.SubjectKeyId = false, x509.KeyUsageCRLSign, []byte{1}
			})
			w.CA, w.PCK = ca, w.Issue("Intel SGX PCK Certificate", ca, nil)
			return spec{}
		}, fault: "not signed by"},
		"attestation key of another": {spec: func(w world) spec {
			return spec{EditQE: func(r []byte) { r[320] ^= 1 }}
		}, fault: "another attestation key"},
		"binding with a tail": {spec: func(w world) spec {
			return spec{EditQE: func(r []byte) { r[383] ^= 1 }}
		}, fault: "another attestation key"},

		"TCB info by other": {collateral: func(w world, c coll) {
			c.TCBInfo = w.Document("tcbInfo", w.TCBInfo, other.Signer)
		}, fault: "TCB info: signature"},
		"TCB info with its own signer": {collateral: func(w world, c coll) {
			c.TCBInfo, c.TCBInfoIssuerChain = other.Document("tcbInfo", w.TCBInfo, other.Signer), concat(other.Signer, other.Root)
		}, fault: "another key"},
		"TCB info with its own signer alone": {collateral: func(w world, c coll) {
			c.TCBInfo, c.TCBInfoIssuerChain = other.Document("tcbInfo", w.TCBInfo, other.Signer), concat(other.Signer)
		}, fault: "not signed by"},
		"TCB info by the PCK": {collateral: func(w world, c coll) {
			c.TCBInfo, c.TCBInfoIssuerChain = w.Document("tcbInfo", w.TCBInfo, w.PCK), concat(w.PCK, w.Root)
		}, fault: "expected \"Intel SGX TCB Signing\""},
		"TCB info by the CA": {collateral: func(w world, c coll) {
			c.TCBInfo, c.TCBInfoIssuerChain = w.Document("tcbInfo", w.TCBInfo, w.CA), concat(w.CA, w.Root)
		}, fault: "expected \"Intel SGX TCB Signing\""},
		"TCB info changed": {collateral: func(w world, c coll) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte("OutOfDate"), []byte("UpToDate"), 1)
		}, fault: "TCB info: signature"},
		"TCB info reformatted": {collateral: func(w world, c coll) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte(`"fmspc":`), []byte(`"fmspc": `), 1)
		}, fault: "TCB info: signature"},
		"identity as TCB info": {collateral: func(w world, c coll) { c.TCBInfo = c.QEIdentity }, fault: "TCB info: signature"},
		"identity renamed": {
			collateral: func(w world, c coll) { c.TCBInfo = w.Document("tcbInfo", w.QEIdentity, w.Signer) }, fault: "reading TCB info",
		},
		"TCB info is not JSON": {collateral: func(w world, c coll) { c.TCBInfo = []byte("x") }, fault: "reading TCB info"},
		"no signature":         {collateral: func(w world, c coll) { c.TCBInfo = []byte(`{"tcbInfo":{}}`) }, fault: "0 characters"},
		"too large":            {collateral: func(w world, c coll) { c.QEIdentity = make([]byte, 2<<20) }, fault: "exceed"},
		"identity by other": {collateral: func(w world, c coll) {
			c.QEIdentity = w.Document("enclaveIdentity", w.QEIdentity, other.Signer)
		}, fault: "QE identity: signature"},
		"chain of three": {
			collateral: func(w world, c coll) { c.TCBInfoIssuerChain = concat(w.Signer, w.CA, w.Root) }, fault: "3 certificates",
		},
		"signer from later": {collateral: func(w world, c coll) {
			w.Signer = w.Issue("Intel SGX TCB Signing", w.Root, later)
			*c = *w.Collateral()
		}, fault: "is valid from"},
		"PCK revoked": {collateral: func(w world, c coll) { w.Revoked = []*fakedcap.Cert{w.PCK}; *c = *w.Collateral() }, fault: "was revoked"},
		"CA revoked":  {collateral: func(w world, c coll) { w.Revoked = []*fakedcap.Cert{w.CA}; *c = *w.Collateral() }, fault: "was revoked"},
		"signer revoked": {collateral: func(w world, c coll) {
			w.Revoked = []*fakedcap.Cert{w.Signer}
			*c = *w.Collateral()
		}, fault: "was revoked"},
		"PCK CRL by other":    {collateral: func(w world, c coll) { c.PCKCRL = other.CRL(other.CA) }, fault: "PCK CRL is not signed"},
		"root CRL by other":   {collateral: func(w world, c coll) { c.RootCRL = other.CRL(other.Root) }, fault: "root CRL is not signed"},
		"root CRL as PCK CRL": {collateral: func(w world, c coll) { c.PCKCRL = c.RootCRL }, fault: "PCK CRL is issued by"},
		"PCK CRL of the root": {collateral: func(w world, c coll) { c.RootCRL = c.PCKCRL }, fault: "root CRL is issued by"},
		"PCK CRL with its own CA": {collateral: func(w world, c coll) {
			c.PCKCRL, c.PCKCRLIssuerChain = other.CRL(other.CA), concat(other.CA, other.Root)
		}, fault: "not signed by"},
		"processor's CRL chain": {collateral: func(w world, c coll) {
			c.PCKCRLIssuerChain = concat(w.Issue("Intel SGX PCK Processor CA", w.Root, nil), w.Root)
		}, fault: "Processor CA"},
		"a CRL is not DER":   {collateral: func(w world, c coll) { c.RootCRL = []byte("3082") }, fault: "root CRL"},
		"good, no CRL chain": {collateral: func(w world, c coll) { c.PCKCRLIssuerChain = nil }},
		"good":               {},
	} {
		t.Run(name, func(t *testing.T) {
			w := fakedcap.New(t, now)
			s := spec{}
			if c.spec != nil {
				s = c.spec(w)
			}
			s.Body = fakedcap.TD(nil)
			o := options(w)
			if c.collateral != nil {
				c.collateral(w, o.Collateral.(*fakedcap.Source).Answer)
			}
			_, err := dcap.Verify(context.Background(), parse(t, w.Quote(s)), o)
			if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("got %v, expected %q", err, c.fault)
			}
		})
	}
}

// TestRevokedBySerial makes sure that it is the serial that is looked up.
func TestRevokedBySerial(t *testing.T) {
	w := fakedcap.New(t, now)
	w.PCK = w.Issue("Intel SGX PCK Certificate", w.CA, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(77) })
	neighbour := w.Issue("Intel SGX PCK Certificate", w.CA, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(78) })
	w.Revoked = []*fakedcap.Cert{neighbour}
	q := parse(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}))
	if _, err := dcap.Verify(context.Background(), q, options(w)); err != nil {
		t.Errorf("another certificate's revocation: %v", err)
	}
	w.Revoked = append(w.Revoked, w.PCK)
	if _, err := dcap.Verify(context.Background(), q, options(w)); err == nil {
		t.Error("a revoked certificate is accepted")
	}
}
