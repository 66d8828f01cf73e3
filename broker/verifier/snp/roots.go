package snp

import (
	"bytes"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cloister/cloister/tee/snp"
)

//go:embed roots/*.pem
var rootFiles embed.FS

// amdRoots are the embedded certificates, read once.
var amdRoots = sync.OnceValues(func() (*Roots, error) {
	entries, err := rootFiles.ReadDir("roots")
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, e := range entries {
		text, err := rootFiles.ReadFile("roots/" + e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return ParseRoots(all...)
})

// AMDRoots are the authorities of AMD: ARK, ASK and ASVK of Milan, Genoa and Turin.
func AMDRoots() (*Roots, error) { return amdRoots() }

// Roots are the authorities that are believed, by product line. They are not changed once made.
type Roots struct {
	lines map[snp.Line]*authorities
}

// authorities are those of one line. A missing ask or asvk must come with the evidence.
type authorities struct {
	ark, ask, asvk *x509.Certificate
}

// issuer is the authority that leaves of a kind are signed by.
func (a *authorities) issuer(vlek bool) *x509.Certificate {
	if vlek {
		return a.asvk
	}
	return a.ask
}

// ParseRoots reads PEM files with an ARK for every line that is to be believed, and any ASK and ASVK. What a certificate is
// for is taken from its name; ASK and ASVK must be signed by the ARK of their line.
func ParseRoots(files ...[]byte) (*Roots, error) {
	var certs []*x509.Certificate
	for _, text := range files {
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("reading an AMD authority: %w", err)
			}
			certs = append(certs, cert)
		}
	}
	r := &Roots{lines: map[snp.Line]*authorities{}}
	for _, c := range certs {
		if err := r.addRoot(c); err != nil {
			return nil, err
		}
	}
	if len(r.lines) == 0 {
		return nil, errors.New("no ARK certificate is given")
	}
	for _, c := range certs {
		if err := r.addIntermediate(c); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Roots) addRoot(c *x509.Certificate) error {
	name, isARK := strings.CutPrefix(c.Subject.CommonName, "ARK-")
	if !isARK {
		return nil
	}
	line, err := snp.ParseLine(name)
	if err != nil {
		return fmt.Errorf("reading authority %q: %w", c.Subject.CommonName, err)
	}
	if err := signedBy(c, c); err != nil {
		return fmt.Errorf("ARK-%s is not signed by itself: %w", line, err)
	}
	if r.lines[line] != nil {
		return fmt.Errorf("ARK-%s is given twice", line)
	}
	r.lines[line] = &authorities{ark: c}
	return nil
}

func (r *Roots) addIntermediate(c *x509.Certificate) error {
	if strings.HasPrefix(c.Subject.CommonName, "ARK-") {
		return nil
	}
	line, vlek, err := snp.LineOfIssuer(c.Subject.CommonName)
	if err != nil {
		return fmt.Errorf("reading an authority: %w", err)
	}
	a := r.lines[line]
	if a == nil {
		return fmt.Errorf("%s is given without ARK-%s", c.Subject.CommonName, line)
	}
	if a.issuer(vlek) != nil {
		return fmt.Errorf("%s is given twice", c.Subject.CommonName)
	}
	if err := signedBy(c, a.ark); err != nil {
		return fmt.Errorf("%s is not signed by ARK-%s: %w", c.Subject.CommonName, line, err)
	}
	if vlek {
		a.asvk = c
	} else {
		a.ask = c
	}
	return nil
}

// signedBy checks that parent issued c, in the one way AMD signs: RSASSA-PSS with SHA-384.
func signedBy(c, parent *x509.Certificate) error {
	if c.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return fmt.Errorf("signature algorithm is %s, expected %s", c.SignatureAlgorithm, x509.SHA384WithRSAPSS)
	}
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return fmt.Errorf("issuer is %q, expected %q", c.Issuer, parent.Subject)
	}
	return c.CheckSignatureFrom(parent)
}

// Has tells whether a certificate is one of the ARKs, byte for byte.
func (r *Roots) Has(ark *x509.Certificate) bool {
	for _, a := range r.lines {
		if a.ark.Equal(ark) {
			return true
		}
	}
	return false
}
