package nvidia

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

const maxChain = 8

// chain is certificates, leaf first, root last.
type chain []*x509.Certificate

func (c chain) leaf() *x509.Certificate { return c[0] }

// expires is when the first of the certificates does.
func (c chain) expires() time.Time {
	t := c[0].NotAfter
	for _, cert := range c[1:] {
		if cert.NotAfter.Before(t) {
			t = cert.NotAfter
		}
	}
	return t
}

// current tells whether all certificates are in their time.
func (c chain) current(now time.Time) bool {
	for _, cert := range c {
		if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
			return false
		}
	}
	return true
}

func parsePEM(text []byte) (chain, error) {
	var ders [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("chain has a %.32q, want certificates alone", block.Type)
		}
		ders = append(ders, block.Bytes)
	}
	if strings.Trim(string(text), " \r\n\t\x00") != "" {
		return nil, fmt.Errorf("chain has %d bytes that are not PEM", len(text))
	}
	return parseDER(ders)
}

func parseDER(ders [][]byte) (chain, error) {
	if len(ders) < 2 || len(ders) > maxChain {
		return nil, fmt.Errorf("chain has %d certificates, want 2 to %d", len(ders), maxChain)
	}
	var out chain
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		out = append(out, cert)
	}
	return out, nil
}

// verify checks that the certificates, in the order given and without one too many, lead to the root. Only the root we
// hold counts, never one that came along. Times are the caller's: a chain must have been good at some time, which is
// when its youngest certificate was issued.
func (c chain) verify(root *x509.Certificate) error {
	if last := c[len(c)-1]; !bytes.Equal(last.Raw, root.Raw) {
		return fmt.Errorf("chain ends at %q (serial %x), want the root %q (serial %x)", last.Subject, last.SerialNumber, root.Subject,
			root.SerialNumber)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	youngest := c[0].NotBefore
	for _, cert := range c[1 : len(c)-1] {
		between.AddCert(cert)
	}
	for _, cert := range c {
		if cert.NotBefore.After(youngest) {
			youngest = cert.NotBefore
		}
	}
	paths, err := c.leaf().Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: youngest, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("chain of %q: %w", c.leaf().Subject, err)
	}
	for _, path := range paths {
		if c.same(path) {
			return c.checkLeaf()
		}
	}
	return fmt.Errorf("chain of %q has %d certificates that are not its path to the root", c.leaf().Subject, len(c))
}

func (c chain) same(path []*x509.Certificate) bool {
	if len(path) != len(c) {
		return false
	}
	for i := range c {
		if !c[i].Equal(path[i]) {
			return false
		}
	}
	return true
}

// checkLeaf checks that the leaf is a signer and no authority, with the one kind of key NVIDIA uses.
func (c chain) checkLeaf() error {
	leaf := c.leaf()
	if leaf.IsCA {
		return fmt.Errorf("%q signs certificates, want one that signs reports or manifests", leaf.Subject)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("key usage of %q is %#x, want digital signatures", leaf.Subject, leaf.KeyUsage)
	}
	_, err := c.key()
	return err
}

func (c chain) key() (*ecdsa.PublicKey, error) {
	key, ok := c.leaf().PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return nil, errors.New("key of the leaf certificate is not on P-384")
	}
	return key, nil
}
