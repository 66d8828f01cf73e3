// Package initdata is the document that tells a guest who it is: its policy and
// the configuration of its services. The host carries it, so nothing in it is
// secret; its digest is measured before anything in it is used, so nothing in it
// can be changed unnoticed.
//
// The digest is over the exact bytes of the document. The document travels as a
// pod annotation or on a small block device, compressed in both.
package initdata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

const (
	// Version is the only document version.
	Version = "0.1.0"
	// MaxSize bounds a document.
	MaxSize = 16 << 20
	// MaxCompressed bounds a compressed document.
	MaxCompressed = 4 << 20

	maxEntries = 1024
)

// Keys of Data that the guest knows; any other is measured and carried along.
const (
	KeyPolicy = "policy.rego"
	KeyAA     = "aa.toml"
	KeyCDH    = "cdh.toml"
)

// Digest algorithms.
const (
	SHA256 = "sha256"
	SHA384 = "sha384"
	SHA512 = "sha512"
)

// Document is initdata.
type Document struct {
	Version   string            `toml:"version"`
	Algorithm string            `toml:"algorithm"`
	Data      map[string]string `toml:"data"`
}

// Parse reads a document. Algorithm comes back in the spelling without a dash.
func Parse(text []byte) (*Document, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("parsing initdata: %d bytes exceed the limit of %d", len(text), MaxSize)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("parsing initdata: text is not UTF-8")
	}
	var d Document
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("parsing initdata: %w", describe(err))
	}
	d.Algorithm = normalAlgorithm(d.Algorithm)
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("parsing initdata: %w", err)
	}
	return &d, nil
}

// describe names the line, or the members that are not known.
func describe(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var names []string
		for _, e := range strict.Errors {
			names = append(names, strings.Join(e.Key(), "."))
		}
		return fmt.Errorf("unknown member %q", names)
	}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		row, column := at.Position()
		return fmt.Errorf("line %d, column %d: %w", row, column, err)
	}
	return err
}

// normalAlgorithm maps the IANA spelling, which some tools write, to ours.
func normalAlgorithm(s string) string {
	switch s {
	case "sha-256", "sha-384", "sha-512":
		return "sha" + s[len("sha-"):]
	}
	return s
}

func (d *Document) check() error {
	if d.Version != Version {
		return fmt.Errorf("version is %q, expected %q", d.Version, Version)
	}
	switch d.Algorithm {
	case SHA256, SHA384, SHA512:
	default:
		return fmt.Errorf("algorithm is %q, expected sha256, sha384 or sha512", d.Algorithm)
	}
	if d.Data == nil {
		return errors.New("table [data] is missing")
	}
	if len(d.Data) > maxEntries {
		return fmt.Errorf("[data] has %d entries, more than %d", len(d.Data), maxEntries)
	}
	return nil
}

// Marshal writes the document. The same document always gives the same bytes.
func (d *Document) Marshal() ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("writing initdata: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "version = %q\nalgorithm = %q\n\n[data]\n", d.Version, d.Algorithm)
	for _, key := range slices.Sorted(maps.Keys(d.Data)) {
		value := d.Data[key]
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("writing initdata: entry %q is not UTF-8", key)
		}
		writeBasic(&b, key)
		b.WriteString(" = ")
		if literal(value) {
			b.WriteString("'''\n" + value + "'''")
		} else {
			writeBasic(&b, value)
		}
		b.WriteByte('\n')
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("writing initdata: %d bytes exceed the limit of %d", b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

// literal tells whether s can stand between triple single quotes as it is, which
// keeps policies and configuration readable.
func literal(s string) bool {
	if strings.Contains(s, "'''") || strings.HasSuffix(s, "'") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 && r != '\n' && r != '\t' || r == 0x7f
	})
}

func writeBasic(b *bytes.Buffer, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}

// Digest hashes the exact bytes of a document with the algorithm it names.
func Digest(text []byte) (alg string, sum []byte, err error) {
	d, err := Parse(text)
	if err != nil {
		return "", nil, err
	}
	switch d.Algorithm {
	case SHA256:
		s := sha256.Sum256(text)
		sum = s[:]
	case SHA384:
		s := sha512.Sum384(text)
		sum = s[:]
	case SHA512:
		s := sha512.Sum512(text)
		sum = s[:]
	}
	return d.Algorithm, sum, nil
}

// PCR8 is the value of PCR 8 in the SHA-256 bank after a fresh TPM was extended
// with digest, once. A TPM holds only SHA-256 digests there.
func PCR8(digest []byte) ([]byte, error) {
	if len(digest) != sha256.Size {
		return nil, fmt.Errorf("initdata for a TPM: digest has %d bytes, expected %d (algorithm sha256)", len(digest), sha256.Size)
	}
	sum := sha256.Sum256(append(make([]byte, sha256.Size), digest...))
	return sum[:], nil
}
