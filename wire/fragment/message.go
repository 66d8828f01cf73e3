package fragment

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Limits of a fragment.
const (
	// MaxBytes is the largest message that is read, in bytes.
	MaxBytes = 1 << 20

	maxCerts       = 10
	maxCertBytes   = 16 << 10
	maxFeed        = 512
	maxHeaderBytes = 64 << 10
)

// ContentType is that of the fragments that this package writes.
const ContentType = "application/unknown+rego"

// contentTypes are those that are read: what the key signs besides, such as other documents, is no fragment.
var contentTypes = []string{ContentType, "application/rego", "application/cose-x509+rego"}

// Labels of headers: RFC 9052, RFC 9360 (x5chain), RFC 9597 (CWT claims), RFC 9054 (payload hash). Issuer and feed also stand as texts of
// their own in messages that are older than RFC 9597.
const (
	labelAlgorithm   = 1
	labelCritical    = 2
	labelContentType = 3
	labelCWT         = 15
	labelX5Chain     = 33
	labelPayloadHash = 258

	claimIssuer  = 1
	claimSubject = 2
	claimSVN     = "svn"
)

// Algorithm is a signature algorithm of COSE.
type Algorithm int64

// The algorithms that are accepted. Others, and messages that name none, are refused.
const (
	ES256 Algorithm = -7
	ES384 Algorithm = -35
	ES512 Algorithm = -36
	PS256 Algorithm = -37
	PS384 Algorithm = -38
	PS512 Algorithm = -39
	EdDSA Algorithm = -8
)

func (a Algorithm) String() string {
	names := map[Algorithm]string{ES256: "ES256", ES384: "ES384", ES512: "ES512", PS256: "PS256", PS384: "PS384", PS512: "PS512", EdDSA: "EdDSA"}
	if n, ok := names[a]; ok {
		return n
	}
	return fmt.Sprintf("COSE algorithm %d", int64(a))
}

// Message is a fragment as its bytes say it. Parse has checked its form only; nothing in it is true before it is verified.
type Message struct {
	Algorithm   Algorithm
	ContentType string
	Issuer      string
	Feed        string
	// SVN is the security version number of the header; HasSVN says whether there is one.
	SVN     uint64
	HasSVN  bool
	Chain   []*x509.Certificate // the signer's first, the authority's last
	Payload []byte

	protected []byte
	signature []byte
	set       map[label]bool
}

// Parse reads a COSE_Sign1 message.
func Parse(raw []byte) (*Message, error) {
	m, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading a policy fragment: %w", err)
	}
	return m, nil
}

func parse(raw []byte) (*Message, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(raw), MaxBytes)
	}
	r := &reader{data: raw}
	if tag, err := r.expect(majorTag, "the message"); err != nil || tag != 18 {
		return nil, errors.New("it is no COSE_Sign1 message (tag 18)")
	}
	if n, err := r.expect(majorArray, "the message"); err != nil || n != 4 {
		return nil, errors.New("the message is not an array of four")
	}
	m := &Message{set: map[label]bool{}}
	var err error
	if m.protected, err = r.bytes("the protected header"); err != nil {
		return nil, err
	}
	if len(m.protected) > maxHeaderBytes {
		return nil, fmt.Errorf("the protected header has %d bytes, the limit is %d", len(m.protected), maxHeaderBytes)
	}
	if r.next() != majorMap {
		return nil, errors.New("the unprotected header is no map")
	}
	if err := r.skip(0); err != nil { // nobody vouches for it, so nothing is taken from it
		return nil, fmt.Errorf("the unprotected header: %w", err)
	}
	if m.Payload, err = r.bytes("the payload"); err != nil {
		return nil, err
	}
	if m.signature, err = r.bytes("the signature"); err != nil {
		return nil, err
	}
	if len(r.data) > 0 {
		return nil, fmt.Errorf("%d bytes follow the message", len(r.data))
	}
	return m, m.header()
}

func (m *Message) header() error {
	r := &reader{data: m.protected}
	var claims struct{ issuer, feed string }
	err := r.entries("the protected header", func(l label) error {
		m.set[l] = true
		var err error
		switch l {
		case label{number: labelAlgorithm}:
			var a int64
			a, err = r.integer("the algorithm")
			m.Algorithm = Algorithm(a)
		case label{number: labelContentType}:
			m.ContentType, err = r.text("the content type")
		case label{number: labelX5Chain}:
			err = m.chain(r)
		case label{number: labelCWT}:
			err = r.entries("the claims", func(l label) error {
				var err error
				switch l {
				case label{number: claimIssuer}:
					claims.issuer, err = r.text("the issuer")
				case label{number: claimSubject}:
					claims.feed, err = r.text("the subject")
				case label{text: claimSVN}:
					m.SVN, err = r.expect(majorUint, "the version")
					m.HasSVN = true
				default:
					err = r.skip(0)
				}
				return err
			})
		case label{text: "iss"}:
			m.Issuer, err = r.text("the issuer")
		case label{text: "feed"}:
			m.Feed, err = r.text("the feed")
		case label{number: labelCritical}:
			err = errors.New("headers that must be understood are not supported")
		case label{number: labelPayloadHash}:
			err = errors.New("the payload is the hash of something else, which is not supported")
		default:
			err = r.skip(0)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(r.data) > 0 {
		return errors.New("bytes follow the protected header")
	}
	for _, both := range []struct {
		name  string
		old   *string
		claim string
	}{{"issuers", &m.Issuer, claims.issuer}, {"feeds", &m.Feed, claims.feed}} {
		if *both.old != "" && both.claim != "" && *both.old != both.claim {
			return fmt.Errorf("it names two %s, %.100q and %.100q", both.name, *both.old, both.claim)
		}
		if *both.old == "" {
			*both.old = both.claim
		}
	}
	switch {
	case !m.set[label{number: labelAlgorithm}]:
		return errors.New("the protected header names no algorithm")
	case len(m.Chain) == 0:
		return errors.New("the protected header has no certificate chain")
	case m.Issuer == "":
		return errors.New("the protected header names no issuer")
	case m.Feed == "":
		return errors.New("the protected header names no feed")
	case len(m.Feed) > maxFeed:
		return fmt.Errorf("the feed has %d bytes, the limit is %d", len(m.Feed), maxFeed)
	case m.SVN > 1<<53:
		return errors.New("the version number is too large")
	case !slices.Contains(contentTypes, m.ContentType):
		return fmt.Errorf("its content type is %.100q, want one of %q", m.ContentType, contentTypes)
	}
	return nil
}

// chain reads one certificate, or a list of them.
func (m *Message) chain(r *reader) error {
	n := uint64(1)
	if r.next() == majorArray {
		var err error
		if n, err = r.expect(majorArray, "the chain"); err != nil {
			return err
		}
	}
	if n == 0 || n > maxCerts {
		return fmt.Errorf("the chain has %d certificates, want 1 to %d", n, maxCerts)
	}
	for range n {
		der, err := r.bytes("a certificate")
		if err != nil {
			return err
		}
		if len(der) > maxCertBytes {
			return fmt.Errorf("a certificate has %d bytes, the limit is %d", len(der), maxCertBytes)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("a certificate: %w", err)
		}
		m.Chain = append(m.Chain, c)
	}
	return nil
}

// toBeSigned is the Sig_structure of RFC 9052, section 4.4.
func toBeSigned(protected, payload []byte) []byte {
	b := make([]byte, 0, len(protected)+len(payload)+32)
	b = appendHead(b, majorArray, 4)
	b = appendText(b, "Signature1")
	b = appendBytes(b, protected)
	b = appendBytes(b, nil)
	return appendBytes(b, payload)
}
