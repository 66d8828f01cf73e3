// Package rim reads NVIDIA's reference integrity manifests: SWID tags (ISO/IEC 19770-2) in XML, signed, whose payload
// lists the measurements that a driver or firmware may have (spec evidence-layouts.md section 9).
//
// The package reads; it verifies no signature. A caller that trusts a manifest must have verified the very bytes it gives
// to ParseContent: the canonical form that the signature digests, not the document it came in.
package rim

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Namespaces of the elements and attributes read.
const (
	nsSWID   = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	nsSHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
	nsDSig   = "http://www.w3.org/2000/09/xmldsig#"
	nsRIM    = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
)

const (
	maxIndex        = 255
	maxAlternatives = 64
	maxCertificates = 8
	maxCertificate  = 16 << 10
	maxHash         = 64
)

// Meta is what a manifest says of itself.
type Meta struct {
	// TagID is the unique name of the manifest.
	TagID string
	// Version is the version of the driver or firmware it is for, as people write it: 550.90.07, 96.00.9F.00.01.
	Version string
	// Product is the chip: GH100, LS10.
	Product string
	// Edition is GPU or SWITCH.
	Edition string
	// ManufacturerID is the maker's IANA enterprise number, 5703 for NVIDIA.
	ManufacturerID string
}

// Measurement is what one index may hold.
type Measurement struct {
	// Index is the number of the measurement as reports have it.
	Index int
	Name  string
	// Active tells that this manifest speaks for the index; others only fill the list up.
	Active bool
	// Size is that of the value in bytes.
	Size int
	// Hashes are the alternatives in hex, as the manifest has them.
	Hashes []string
}

// Values decodes the alternatives.
func (m Measurement) Values() ([][]byte, error) {
	out := make([][]byte, 0, len(m.Hashes))
	for i, text := range m.Hashes {
		v, err := hex.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("measurement %d: Hash%d: %w", m.Index, i, err)
		}
		if len(v) != m.Size || len(v) > maxHash {
			return nil, fmt.Errorf("measurement %d: Hash%d has %d bytes, its size is %d and at most %d are read", m.Index, i, len(v),
				m.Size, maxHash)
		}
		out = append(out, v)
	}
	return out, nil
}

// Content is the signed part of a manifest.
type Content struct {
	Meta
	// Measurements are in the order of the manifest.
	Measurements []Measurement
}

// Manifest is a whole document.
type Manifest struct {
	Content
	// Certificates are those of the signature, DER, signer first.
	Certificates [][]byte
}

// Parse reads a document with its signature's certificates.
func Parse(doc []byte) (*Manifest, error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	content, err := readContent(root)
	if err != nil {
		return nil, err
	}
	certs, err := readCertificates(root)
	if err != nil {
		return nil, err
	}
	return &Manifest{Content: *content, Certificates: certs}, nil
}

// ParseContent reads a document without its signature: what was signed.
func ParseContent(doc []byte) (*Content, error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	return readContent(root)
}

// ParsePayload reads the list of measurements alone. Values are not decoded, so that a list can be shown although it is
// of no use.
func ParsePayload(doc []byte) ([]Measurement, error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	return readPayload(root)
}

func readContent(root *node) (*Content, error) {
	if !root.is(nsSWID, "SoftwareIdentity") {
		return nil, fmt.Errorf("document is <%s> of %q, want <SoftwareIdentity> of %q", root.name, root.space, nsSWID)
	}
	meta, err := readMeta(root)
	if err != nil {
		return nil, err
	}
	measurements, err := readPayload(root)
	if err != nil {
		return nil, err
	}
	for _, m := range measurements {
		if _, err := m.Values(); err != nil {
			return nil, err
		}
	}
	return &Content{Meta: *meta, Measurements: measurements}, nil
}

func readMeta(root *node) (*Meta, error) {
	e, err := root.child(nsSWID, "Meta")
	if err != nil {
		return nil, err
	}
	m := Meta{TagID: root.optional("", "tagId"), Product: e.optional("", "product"), Edition: e.optional("", "edition"),
		ManufacturerID: e.optional(nsRIM, "PlatformManufacturerId")}
	if m.Version, err = e.attr("", "colloquialVersion"); err != nil {
		return nil, err
	}
	return &m, nil
}

func readPayload(root *node) ([]Measurement, error) {
	payload, err := root.child(nsSWID, "Payload")
	if err != nil {
		return nil, err
	}
	var out []Measurement
	var seen [maxIndex + 1]bool
	for _, e := range payload.children {
		if !e.is(nsSWID, "Resource") || e.optional("", "type") != "Measurement" {
			return nil, fmt.Errorf("payload has <%s type=%q>, want <Resource type=\"Measurement\">", e.name, e.optional("", "type"))
		}
		m, err := readMeasurement(e)
		if err != nil {
			return nil, err
		}
		if seen[m.Index] {
			return nil, fmt.Errorf("measurement %d occurs twice", m.Index)
		}
		seen[m.Index] = true
		out = append(out, m)
	}
	if len(out) == 0 {
		return nil, errors.New("payload has no measurement")
	}
	return out, nil
}

func readMeasurement(e *node) (Measurement, error) {
	var m Measurement
	var err error
	if m.Index, err = e.number("index", 0, maxIndex); err != nil {
		return m, err
	}
	in := func(err error) error { return fmt.Errorf("measurement %d: %w", m.Index, err) }
	if m.Size, err = e.number("size", 0, 1<<10); err != nil {
		return m, in(err)
	}
	alternatives, err := e.number("alternatives", 1, maxAlternatives)
	if err != nil {
		return m, in(err)
	}
	active, err := e.attr("", "active")
	switch {
	case err != nil:
		return m, in(err)
	case active != "True" && active != "False":
		return m, in(fmt.Errorf("active is %q, want True or False", active))
	}
	m.Active = active == "True"
	m.Name = e.optional("", "name")
	for i := range alternatives {
		v, err := e.attr(nsSHA384, "Hash"+strconv.Itoa(i))
		if err != nil {
			return m, in(err)
		}
		m.Hashes = append(m.Hashes, v)
	}
	hashes := 0
	for a := range e.attrs {
		if strings.HasPrefix(a.name, "Hash") {
			hashes++
		}
	}
	if hashes != alternatives {
		return m, in(fmt.Errorf("it has %d hashes, alternatives says %d", hashes, alternatives))
	}
	return m, nil
}

func readCertificates(root *node) ([][]byte, error) {
	e := root
	for _, name := range []string{"Signature", "KeyInfo", "X509Data"} {
		var err error
		if e, err = e.child(nsDSig, name); err != nil {
			return nil, err
		}
	}
	var out [][]byte
	for _, c := range e.children {
		if !c.is(nsDSig, "X509Certificate") {
			return nil, fmt.Errorf("X509Data has <%s>, want certificates alone", c.name)
		}
		if len(c.text) > maxCertificate || len(out) == maxCertificates {
			return nil, fmt.Errorf("certificate %d has %d characters, at most %d certificates of %d are read", len(out)+1, len(c.text),
				maxCertificates, maxCertificate)
		}
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(c.text), ""))
		if err != nil || len(der) == 0 {
			return nil, fmt.Errorf("certificate %d is not base64: %w", len(out)+1, errors.Join(err, emptyError(der)))
		}
		out = append(out, der)
	}
	if len(out) == 0 {
		return nil, errors.New("X509Data has no certificate")
	}
	return out, nil
}

func emptyError(b []byte) error {
	if len(b) == 0 {
		return errors.New("it is empty")
	}
	return nil
}
