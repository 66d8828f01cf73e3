package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	_ "embed" // for the root
	"encoding/pem"
	"errors"
	"fmt"
	"sync"

	"github.com/cloister/cloister/tee/quote"
)

// Names Intel gives its certificates. A certificate is only taken for what its name says.
const (
	nameRoot        = "Intel SGX Root CA"
	namePCK         = "Intel SGX PCK Certificate"
	namePlatformCA  = "Intel SGX PCK Platform CA"
	nameProcessorCA = "Intel SGX PCK Processor CA"
	nameTCBSigner   = "Intel SGX TCB Signing"
)

const (
	maxChainBytes = 64 << 10
	maxChainCerts = 4
)

// intelRootPEM is Intel's SGX Root CA, SHA-256 of the DER 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3.
//
//go:embed roots/intel-sgx-root-ca.pem
var intelRootPEM []byte

var intelRoot = sync.OnceValues(func() (*x509.Certificate, error) {
	certs, err := parseChain(intelRootPEM)
	if err != nil {
		return nil, fmt.Errorf("embedded Intel root: %w", err)
	}
	return certs[0], nil
})

func (o Options) root() (*x509.Certificate, error) {
	if o.Root != nil {
		return o.Root, nil
	}
	return intelRoot()
}

// pckCerts is the verified chain of a quote.
type pckCerts struct {
	leaf, issuer *x509.Certificate
	ca           string // CAPlatform or CAProcessor
	pck          *quote.PCK
}

// parseChain reads PEM certificates. A NUL at the end belongs to the C programs that wrote it.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	text = bytes.TrimRight(text, "\x00")
	if len(text) > maxChainBytes {
		return nil, fmt.Errorf("%d bytes exceed the limit of %d", len(text), maxChainBytes)
	}
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if !canonical(text[:len(text)-len(rest)], block) {
			return nil, errors.New("there is more in the PEM text than certificates")
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block of type %.40q, expected CERTIFICATE", block.Type)
		}
		if len(certs) == maxChainCerts {
			return nil, fmt.Errorf("more than %d certificates", maxChainCerts)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it")
	}
	if len(bytes.TrimSpace(text)) > 0 {
		return nil, fmt.Errorf("%d bytes after the last certificate are not PEM", len(text))
	}
	return certs, nil
}

// canonical tells whether text is the block and nothing else, apart from line ends: the decoder skips what it does not know, and
// nothing signs that.
func canonical(text []byte, block *pem.Block) bool {
	bare := func(b []byte) []byte { return bytes.Join(bytes.Fields(b), nil) }
	return bytes.Equal(bare(text), bare(pem.EncodeToMemory(block)))
}

// pckChain verifies the chain in a quote: leaf, CA, root, in this order.
func pckChain(q *quote.Quote, root *x509.Certificate, w *windows) (*pckCerts, error) {
	text, ok := q.Certification.PEMChain()
	if !ok {
		return nil, fmt.Errorf("%w: its certification data is of type %v, expected 5", ErrNoChain, q.Certification)
	}
	certs, err := parseChain(text)
	if err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	if len(certs) != 3 {
		return nil, fmt.Errorf("PCK certificate chain has %d certificates, expected 3", len(certs))
	}
	p := &pckCerts{leaf: certs[0], issuer: certs[1]}
	if p.ca = caOf(p.issuer); p.ca == "" {
		return nil, fmt.Errorf("PCK certificate chain: issuer is %q, expected %q or %q",
			p.issuer.Subject.CommonName, namePlatformCA, nameProcessorCA)
	}
	if err := checkRoot(certs[2], root); err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	if err := checkIssued(p.issuer, root, w); err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	if err := checkName(p.leaf, namePCK); err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	if err := checkIssued(p.leaf, p.issuer, w); err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	if err := w.cert(root); err != nil {
		return nil, fmt.Errorf("PCK certificate chain: %w", err)
	}
	for _, ext := range p.leaf.Extensions {
		if ext.Id.Equal(quote.OIDSGXExtension) {
			p.pck, err = quote.ParsePCK(ext.Value)
			return p, err
		}
	}
	return nil, errors.New("PCK certificate has no Intel SGX extension")
}

func caOf(c *x509.Certificate) string {
	switch c.Subject.CommonName {
	case namePlatformCA:
		return CAPlatform
	case nameProcessorCA:
		return CAProcessor
	}
	return ""
}

func checkName(c *x509.Certificate, want string) error {
	if got := c.Subject.CommonName; got != want {
		return fmt.Errorf("certificate of %q, expected %q", got, want)
	}
	return nil
}

// checkRoot makes sure that a chain's own root is the anchor, or one that Intel issued anew: of the same key, and signed with it.
func checkRoot(got, anchor *x509.Certificate) error {
	key, ok := anchor.PublicKey.(*ecdsa.PublicKey)
	if !ok || !key.Equal(got.PublicKey) {
		return fmt.Errorf("root %q has another key than the trusted %q", got.Subject.CommonName, anchor.Subject.CommonName)
	}
	if bytes.Equal(got.Raw, anchor.Raw) {
		return nil
	}
	return checkLink(got, anchor)
}

// checkIssued checks one link of a chain and notes the validity of the lower certificate. Chains of one verification share
// links; each is checked once.
func checkIssued(c, issuer *x509.Certificate, w *windows) error {
	l := link{string(c.Raw), string(issuer.Raw)}
	if w.checked[l] {
		return nil
	}
	if err := checkLink(c, issuer); err != nil {
		return err
	}
	if w.checked == nil {
		w.checked = map[link]bool{}
	}
	w.checked[l] = true
	return w.cert(c)
}

func checkLink(c, issuer *x509.Certificate) error {
	name := c.Subject.CommonName
	if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("certificate of %q is issued by %q, expected %q", name, c.Issuer.CommonName, issuer.Subject.CommonName)
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("certificate of %q has the unknown critical extension %v", name, c.UnhandledCriticalExtensions[0])
	}
	if err := c.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("certificate of %q is not signed by %q: %w", name, issuer.Subject.CommonName, err)
	}
	return nil
}

// signer verifies the chain of a TCB signing certificate: the certificate, and the root if it is given.
func signer(text []byte, root *x509.Certificate, w *windows) (*x509.Certificate, error) {
	certs, err := parseChain(text)
	if err != nil {
		return nil, err
	}
	if len(certs) > 2 {
		return nil, fmt.Errorf("%d certificates, expected the signer and the root", len(certs))
	}
	if err := checkName(certs[0], nameTCBSigner); err != nil {
		return nil, err
	}
	if len(certs) == 2 {
		if err := checkRoot(certs[1], root); err != nil {
			return nil, err
		}
	}
	if err := checkIssued(certs[0], root, w); err != nil {
		return nil, err
	}
	return certs[0], nil
}

// IntelRoot is the certificate that is trusted when Options.Root is nil.
func IntelRoot() (*x509.Certificate, error) { return intelRoot() }
