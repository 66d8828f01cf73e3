// Package didx509 resolves identities of the DID method x509, version 0: a name such as
//
//	did:x509:0:sha256:WE4P5dd8DnLHSkyHaIjhp4udlkF9LqoKwCvu9gl38jk::subject:C:US:O:Example::eku:1.3.6.1.5.5.7.3.3
//
// holds the fingerprint of a certificate authority and what must be true of a certificate under it. Resolving needs no network: the
// chain comes with what was signed, and the name alone says which chains are right.
//
// Source: https://github.com/microsoft/did-x509 specification.md. Stricter than it: the leaf is no authority, and the chain given is the
// chain that validates, with nothing left over.
package didx509

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of what is read.
const (
	maxName       = 2048
	maxPredicates = 16
	maxChain      = 10
)

// ErrExpired is the fault of a chain that is right but for the time.
var ErrExpired = errors.New("the certificate chain is not valid at this time")

// Name is a parsed identity.
type Name struct {
	text        string
	algorithm   string
	fingerprint []byte
	predicates  []predicate
}

type predicate struct {
	kind string
	args []string // decoded
}

// String is the name as it was given.
func (n *Name) String() string { return n.text }

// Parse reads a name.
func Parse(text string) (*Name, error) {
	n, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("identity %.200q: %w", text, err)
	}
	return n, nil
}

func parse(text string) (*Name, error) {
	if len(text) > maxName {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(text), maxName)
	}
	rest, ok := strings.CutPrefix(text, "did:x509:")
	if !ok {
		return nil, errors.New("it is no name of did:x509")
	}
	parts := strings.Split(rest, "::")
	head := strings.Split(parts[0], ":")
	if len(head) != 3 {
		return nil, errors.New("want a version, a hash algorithm and a fingerprint")
	}
	if head[0] != "0" {
		return nil, fmt.Errorf("version %.20q is not supported", head[0])
	}
	n := &Name{text: text, algorithm: head[1]}
	sizes := map[string]int{"sha256": sha256.Size, "sha384": sha512.Size384, "sha512": sha512.Size}
	var err error
	n.fingerprint, err = base64.RawURLEncoding.Strict().DecodeString(head[2])
	if size, ok := sizes[head[1]]; !ok {
		return nil, fmt.Errorf("hash algorithm %.20q is not supported", head[1])
	} else if err != nil || len(n.fingerprint) != size {
		return nil, fmt.Errorf("the fingerprint is not base64url of %d bytes", size)
	}
	if len(parts) < 2 || len(parts) > maxPredicates+1 {
		return nil, fmt.Errorf("it has %d predicates, want 1 to %d", len(parts)-1, maxPredicates)
	}
	for _, p := range parts[1:] {
		pred, err := parsePredicate(p)
		if err != nil {
			return nil, err
		}
		n.predicates = append(n.predicates, pred)
	}
	return n, nil
}

func parsePredicate(text string) (predicate, error) {
	words := strings.Split(text, ":")
	p := predicate{kind: words[0]}
	for _, w := range words[1:] {
		arg, err := decode(w)
		if err != nil {
			return p, err
		}
		p.args = append(p.args, arg)
	}
	switch p.kind {
	case "subject":
		if len(p.args) == 0 || len(p.args)%2 != 0 {
			return p, errors.New("predicate subject: want pairs of a field and its value")
		}
		seen := map[string]bool{}
		for i := 0; i < len(p.args); i += 2 {
			if seen[p.args[i]] {
				return p, fmt.Errorf("predicate subject: field %q comes twice", p.args[i])
			}
			seen[p.args[i]] = true
			if _, ok := subjectFields[p.args[i]]; !ok && !isOID(p.args[i]) {
				return p, fmt.Errorf("predicate subject: there is no field %q", p.args[i])
			}
		}
		return p, nil
	case "san":
		if len(p.args) == 2 && slices.Contains([]string{"email", "dns", "uri"}, p.args[0]) {
			return p, nil
		}
		return p, errors.New("predicate san: want email, dns or uri, and a value")
	case "eku":
		if len(p.args) == 1 && isOID(p.args[0]) {
			return p, nil
		}
		return p, errors.New("predicate eku: want one object identifier")
	case "fulcio-issuer":
		if len(p.args) == 1 {
			return p, nil
		}
		return p, errors.New("predicate fulcio-issuer: want one value")
	}
	return p, fmt.Errorf("there is no predicate %.40q", p.kind)
}

// decode undoes the percent-encoding of one word, which has letters, digits, and . - _ besides it.
func decode(s string) (string, error) {
	if s == "" {
		return "", errors.New("a value is empty")
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '-', c == '_':
			b.WriteByte(c)
		case c == '%' && i+2 < len(s) && hex(s[i+1]) >= 0 && hex(s[i+2]) >= 0:
			b.WriteByte(byte(hex(s[i+1])<<4 | hex(s[i+2])))
			i += 2
		default:
			return "", fmt.Errorf("character %q of a value is not percent-encoded", c)
		}
	}
	return b.String(), nil
}

// hex is the value of a hexadecimal digit, or -1.
func hex(c byte) int {
	if c >= 'A' && c <= 'F' {
		c += 'a' - 'A'
	}
	return strings.IndexByte("0123456789abcdef", c)
}

// Encode percent-encodes a value for a name.
func Encode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if _, err := decode(s[i : i+1]); err == nil {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// Fingerprint is the SHA-256 of a certificate as names have it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func isOID(s string) bool {
	arcs := strings.Split(s, ".")
	return len(arcs) >= 2 && !slices.ContainsFunc(arcs, func(a string) bool {
		return a == "" || len(a) > 10 || len(a) > 1 && a[0] == '0' || strings.Trim(a, "0123456789") != ""
	})
}

// Resolve checks that a chain, the leaf first and the authority it is anchored in last, is the identity's. The leaf's key is then the key
// of the identity. An error that wraps ErrExpired is of a chain that was right at some time.
func (n *Name) Resolve(chain []*x509.Certificate, at time.Time) error {
	err := n.matches(chain)
	if err == nil {
		err = validate(chain, at)
	}
	if err != nil {
		return fmt.Errorf("identity %s: %w", n.text, err)
	}
	return nil
}

func (n *Name) matches(chain []*x509.Certificate) error {
	if len(chain) < 2 || len(chain) > maxChain {
		return fmt.Errorf("the chain has %d certificates, want 2 to %d", len(chain), maxChain)
	}
	if !slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return bytes.Equal(n.sum(c.Raw), n.fingerprint) }) {
		return errors.New("no authority of the chain has its fingerprint")
	}
	for _, p := range n.predicates {
		if err := p.holds(chain[0]); err != nil {
			return fmt.Errorf("predicate %s: %w", p.kind, err)
		}
	}
	return nil
}

func (n *Name) sum(der []byte) []byte {
	switch n.algorithm {
	case "sha384":
		s := sha512.Sum384(der)
		return s[:]
	case "sha512":
		s := sha512.Sum512(der)
		return s[:]
	}
	s := sha256.Sum256(der)
	return s[:]
}

// validate checks the path as RFC 5280 wants it, from the last certificate to the first, without leaving one out.
func validate(chain []*x509.Certificate, at time.Time) error {
	leaf, last := chain[0], chain[len(chain)-1]
	if leaf.BasicConstraintsValid && leaf.IsCA {
		return errors.New("the signing certificate is an authority's")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("the signing certificate is not for signatures")
	}
	var notBefore, notAfter time.Time
	for i, c := range chain {
		if i+1 < len(chain) {
			if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
				return fmt.Errorf("certificate %d of the chain: %w", i, err)
			}
		}
		if i == 0 || c.NotBefore.After(notBefore) {
			notBefore = c.NotBefore
		}
		if i == 0 || c.NotAfter.Before(notAfter) {
			notAfter = c.NotAfter
		}
	}
	expired := at.Before(notBefore) || at.After(notAfter)
	if expired {
		at = notAfter // the rest is checked at a time when all were valid, if there was one
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(last)
	for _, c := range chain[1 : len(chain)-1] {
		between.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fmt.Errorf("the chain: %w", err)
	}
	if !slices.ContainsFunc(paths, func(p []*x509.Certificate) bool { return slices.EqualFunc(p, chain, (*x509.Certificate).Equal) }) {
		return errors.New("the chain has certificates that do not belong to the path")
	}
	if expired {
		return fmt.Errorf("%w: it is from %s to %s", ErrExpired, notBefore.UTC().Format(time.RFC3339), notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// subjectFields are the fields of a subject that have short names.
var subjectFields = map[string]string{
	"CN": "2.5.4.3", "L": "2.5.4.7", "ST": "2.5.4.8", "O": "2.5.4.10", "OU": "2.5.4.11", "C": "2.5.4.6", "STREET": "2.5.4.9",
}

var (
	oidEKU          = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidFulcioIssuer = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
)

func (p predicate) holds(leaf *x509.Certificate) error {
	switch p.kind {
	case "subject":
		for i := 0; i < len(p.args); i += 2 {
			oid, want := p.args[i], p.args[i+1]
			if short, ok := subjectFields[oid]; ok {
				oid = short
			}
			var got []any
			for _, a := range leaf.Subject.Names {
				if a.Type.String() == oid {
					got = append(got, a.Value)
				}
			}
			if len(got) != 1 || got[0] != want {
				return fmt.Errorf("the certificate has %s %.200q, want %q once", p.args[i], got, want)
			}
		}
		return nil
	case "san":
		var got []string
		switch p.args[0] {
		case "email":
			got = leaf.EmailAddresses
		case "dns":
			got = leaf.DNSNames
		case "uri":
			for _, u := range leaf.URIs {
				got = append(got, u.String())
			}
		}
		if !slices.Contains(got, p.args[1]) {
			return fmt.Errorf("the certificate has %s %.200q, want %q", p.args[0], got, p.args[1])
		}
		return nil
	case "eku":
		var got []asn1.ObjectIdentifier
		if raw := extension(leaf, oidEKU); raw != nil {
			if rest, err := asn1.Unmarshal(raw, &got); err != nil || len(rest) > 0 {
				return errors.New("the certificate's extended key usage cannot be read")
			}
		}
		if !slices.ContainsFunc(got, func(o asn1.ObjectIdentifier) bool { return o.String() == p.args[0] }) {
			return fmt.Errorf("the certificate is for %.200s, want %s", fmt.Sprint(got), p.args[0])
		}
		return nil
	}
	if got := extension(leaf, oidFulcioIssuer); string(got) != "https://"+p.args[0] {
		return fmt.Errorf("the certificate has %.200q, want %q", got, "https://"+p.args[0])
	}
	return nil
}

func extension(c *x509.Certificate, id asn1.ObjectIdentifier) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return e.Value
		}
	}
	return nil
}
