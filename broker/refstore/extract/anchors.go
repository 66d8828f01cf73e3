package extract

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	maxAnchorFile = 1 << 20
	maxChain      = 8
	minRSA        = 2048
)

// anchors are the keys and authorities that signatures may come from.
type anchors struct {
	keys  []anchorKey
	roots []*x509.Certificate
}

// anchorKey is a key trusted by itself.
type anchorKey struct {
	public crypto.PublicKey
	// name is what records call the signer.
	name string
	// certificate bounds the time of the key; nil when a bare key was configured.
	certificate *x509.Certificate
}

func (a *anchors) empty() bool { return a == nil || len(a.keys)+len(a.roots) == 0 }

// loadAnchors reads PEM files of certificates and public keys.
func loadAnchors(files []string) (*anchors, error) {
	a := &anchors{}
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			err = a.add(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading trust anchors of %s: %w", file, err))
		}
	}
	return a, errors.Join(errs...)
}

func (a *anchors) add(text []byte) error {
	if len(text) > maxAnchorFile {
		return fmt.Errorf("it has %d bytes, at most %d are read", len(text), maxAnchorFile)
	}
	found := false
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if err := a.addBlock(block); err != nil {
			return err
		}
		found = true
	}
	switch {
	case strings.TrimSpace(string(text)) != "":
		return fmt.Errorf("it ends with %d bytes that are not PEM", len(text))
	case !found:
		return errors.New("it is empty")
	}
	return nil
}

func (a *anchors) addBlock(block *pem.Block) error {
	switch block.Type {
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("reading certificate: %w", err)
		}
		if err := checkKey(cert.PublicKey); err != nil {
			return fmt.Errorf("certificate of %q: %w", cert.Subject, err)
		}
		if cert.IsCA {
			a.roots = append(a.roots, cert)
			return nil
		}
		if err := maySign(cert); err != nil {
			return err
		}
		a.keys = append(a.keys, anchorKey{public: cert.PublicKey, name: cert.Subject.String(), certificate: cert})
	case "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return fmt.Errorf("reading public key: %w", err)
		}
		if err := checkKey(key); err != nil {
			return err
		}
		sum := sha256.Sum256(block.Bytes)
		a.keys = append(a.keys, anchorKey{public: key, name: "sha256:" + hex.EncodeToString(sum[:])})
	default:
		return fmt.Errorf("it has a %.32q, want CERTIFICATE or PUBLIC KEY", block.Type)
	}
	return nil
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return fmt.Errorf("key is on %s, want P-256, P-384 or P-521", k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("RSA key has %d bits, want at least %d", k.N.BitLen(), minRSA)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key is a %T, want ECDSA, Ed25519 or RSA", key)
	}
	return nil
}

func maySign(cert *x509.Certificate) error {
	if cert.IsCA {
		return fmt.Errorf("%q is an authority, want a signer", cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("key usage of %q is %#x, want digital signatures", cert.Subject, cert.KeyUsage)
	}
	return checkKey(cert.PublicKey)
}

// usable tells whether a key may be relied on at a time.
func (k anchorKey) usable(now time.Time) error {
	if c := k.certificate; c != nil && (now.Before(c.NotBefore) || now.After(c.NotAfter)) {
		return fmt.Errorf("certificate of %q is valid from %s to %s, now is %s", c.Subject, c.NotBefore.Format(time.RFC3339),
			c.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// signer reads a chain that came with a document, signer first, and checks that it leads to a root of ours now. Roots that
// came along count for nothing.
func (a *anchors) signer(ders [][]byte, now time.Time) (anchorKey, error) {
	if len(ders) == 0 || len(ders) > maxChain {
		return anchorKey{}, fmt.Errorf("chain has %d certificates, want 1 to %d", len(ders), maxChain)
	}
	if a.empty() || len(a.roots) == 0 {
		return anchorKey{}, errors.New("no authority is configured that could vouch for its certificate")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range a.roots {
		roots.AddCert(root)
	}
	var leaf *x509.Certificate
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return anchorKey{}, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		if i == 0 {
			leaf = cert
			continue
		}
		between.AddCert(cert)
	}
	if err := maySign(leaf); err != nil {
		return anchorKey{}, err
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return anchorKey{}, fmt.Errorf("certificate of %q: %w", leaf.Subject, err)
	}
	return anchorKey{public: leaf.PublicKey, name: leaf.Subject.String(), certificate: leaf}, nil
}
