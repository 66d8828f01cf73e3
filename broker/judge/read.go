package judge

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"unicode/utf8"
)

// pemBlocks takes PEM text apart, and DER for one block. Tools write what they know of a certificate before its block ("openssl x509
// -text", bag attributes); that is passed over as long as nothing in it looks like a block, which a damaged one would.
func pemBlocks(data []byte, kind string) ([][]byte, error) {
	if !isPEM(data) {
		if len(data) == 0 {
			return nil, errors.New("0 bytes, expected DER or PEM")
		}
		return [][]byte{data}, nil
	}
	var out [][]byte
	rest := bytes.TrimRight(data, " \t\r\n\x00")
	for len(rest) > 0 {
		rest = rest[max(preamble(rest), 0):]
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("%d bytes that are not PEM", len(rest))
		}
		bare := func(b []byte) []byte { return bytes.Join(bytes.Fields(b), nil) }
		if !bytes.Equal(bare(rest[:len(rest)-len(after)]), bare(pem.EncodeToMemory(block))) {
			return nil, errors.New("more in the PEM text than its blocks")
		}
		if kind != "" && block.Type != kind {
			return nil, fmt.Errorf("PEM block of type %.32q, expected %q", block.Type, kind)
		}
		out, rest = append(out, block.Bytes), after
	}
	return out, nil
}

const pemBegin = "-----BEGIN "

// isPEM tells PEM text, which may begin with other text, from DER.
func isPEM(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte(pemBegin)) || preamble(data) > 0
}

// preamble is the size in bytes of the text before the first block, -1 when what is before it is not just text or there is none.
func preamble(data []byte) int {
	n := bytes.Index(data, []byte("\n"+pemBegin)) + 1
	text := data[:n]
	if n == 0 || !utf8.Valid(text) || bytes.Contains(text, []byte("-----")) || bytes.IndexByte(text, 0) >= 0 {
		return -1
	}
	return n
}

const (
	pemCertificate = "CERTIFICATE"
	pemCRL         = "X509 CRL"
	maxBlocks      = 64
)

// certificates reads DER, PEM with one or more, or base64 of PEM.
func certificates(data []byte) ([]*x509.Certificate, error) {
	if text, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(data))); err == nil && bytes.HasPrefix(text, []byte("-----BEGIN")) {
		data = text
	}
	blocks, err := pemBlocks(data, pemCertificate)
	if err != nil {
		return nil, err
	}
	if len(blocks) > maxBlocks {
		return nil, fmt.Errorf("%d certificates, expected at most %d", len(blocks), maxBlocks)
	}
	out := make([]*x509.Certificate, 0, len(blocks))
	for _, der := range blocks {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// certificate reads the one certificate of a file, nil when there is no file or it was refused.
func (j *judging) certificate(what string, data []byte) *x509.Certificate {
	if data == nil {
		return nil
	}
	certs, err := certificates(data)
	if err != nil {
		j.refuse("%s cannot be read: %v", what, err)
		return nil
	}
	if len(certs) != 1 {
		j.refuse("%s has %d certificates, expected 1", what, len(certs))
		return nil
	}
	return certs[0]
}

// revocationList reads a list, nil when it was refused.
func (j *judging) revocationList(data []byte) *x509.RevocationList {
	blocks, err := pemBlocks(data, pemCRL)
	if err == nil && len(blocks) != 1 {
		err = fmt.Errorf("%d lists, expected 1", len(blocks))
	}
	if err != nil {
		j.refuse("a revocation list cannot be read: %v", err)
		return nil
	}
	list, err := x509.ParseRevocationList(blocks[0])
	if err != nil {
		j.refuse("a revocation list cannot be read: %v", err)
		return nil
	}
	return list
}

func selfSigned(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

func fingerprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.Raw) }

func toPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})
}

// minDecoded is the size in bytes from which a file of digits is taken for an encoded one; the shortest evidence is longer.
const minDecoded = 64

// text decodes a file of hex or base64 digits; anything else is what it is.
func text(data []byte) []byte {
	t := bytes.TrimSpace(data)
	if b, err := hex.DecodeString(string(t)); err == nil && len(b) >= minDecoded {
		return b
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding.Strict(), base64.URLEncoding.Strict(), base64.RawURLEncoding.Strict()} {
		if b, err := e.DecodeString(string(t)); err == nil && len(b) >= minDecoded {
			return b
		}
	}
	return data
}

// isJSON tells whether a file is JSON by how it begins.
func isJSON(data []byte) bool {
	t := bytes.TrimLeft(data, " \t\r\n")
	return len(t) > 0 && (t[0] == '{' || t[0] == '[')
}
