package snp

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// oidAMD is the arc of AMD's extensions (evidence-layouts.md section 1.5).
var oidAMD = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

const (
	maxProductName = 32
	maxCSPID       = 256
)

// Leaf is what AMD's extensions say of the key that signs reports.
type Leaf struct {
	StructVersion int
	Product       string // such as Milan-B0 or Genoa
	TCB           TCB
	HasFMC        bool
	HWID          []byte // of a VCEK: 64 bytes, 8 on Turin
	CSPID         string // of a VLEK: the cloud provider
}

// Kind is the kind of key, by which of hwID and CSP id the certificate has.
func (l *Leaf) Kind() SigningKey {
	if l.HWID != nil {
		return VCEK
	}
	return VLEK
}

// ProductLine is the line the product name speaks of.
func (l *Leaf) ProductLine() (Line, error) {
	name, _, _ := strings.Cut(l.Product, "-")
	return ParseLine(name)
}

// ParseLeaf reads the extensions of a VCEK or VLEK certificate. Every one may be there once; the product name, the four
// levels all lines have, and either a hwID or a CSP id must be. Extensions outside AMD's arc are left alone.
func ParseLeaf(extensions []pkix.Extension) (*Leaf, error) {
	p := leafParser{seen: map[string]bool{}}
	for _, e := range extensions {
		name, ok := underAMD(e.Id)
		if !ok {
			continue
		}
		if err := p.take(name, e.Value); err != nil {
			return nil, fmt.Errorf("parsing AMD extension %s: %w", e.Id, err)
		}
	}
	for _, name := range []string{"2", "3.1", "3.2", "3.3", "3.8"} {
		if !p.seen[name] {
			return nil, fmt.Errorf("certificate has no AMD extension %s.%s", oidAMD, name)
		}
	}
	if p.seen["4"] == p.seen["5"] {
		return nil, errors.New("certificate has both or neither of hwID and CSP id, expected one: it is no VCEK and no VLEK")
	}
	return &p.leaf, nil
}

// underAMD returns the part of an identifier below AMD's arc, dotted.
func underAMD(id asn1.ObjectIdentifier) (string, bool) {
	if len(id) <= len(oidAMD) || !id[:len(oidAMD)].Equal(oidAMD) {
		return "", false
	}
	return id[len(oidAMD):].String(), true
}

type leafParser struct {
	leaf Leaf
	seen map[string]bool
}

func (p *leafParser) take(name string, value []byte) (err error) {
	if p.seen[name] {
		return errors.New("it is there twice")
	}
	p.seen[name] = true
	l := &p.leaf
	switch name {
	case "1":
		var v uint8
		v, err = level(value)
		l.StructVersion = int(v)
	case "2":
		l.Product, err = ia5(value, maxProductName)
	case "3.1":
		l.TCB.BootLoader, err = level(value)
	case "3.2":
		l.TCB.TEE, err = level(value)
	case "3.3":
		l.TCB.SNP, err = level(value)
	case "3.8":
		l.TCB.Microcode, err = level(value)
	case "3.9":
		l.TCB.FMC, err = level(value)
		l.HasFMC = true
	case "4":
		l.HWID, err = hwID(value)
	case "5":
		l.CSPID, err = ia5(value, maxCSPID)
	}
	return err
}

// level reads a DER INTEGER from 0 to 255.
func level(value []byte) (uint8, error) {
	var n int
	rest, err := asn1.Unmarshal(value, &n)
	switch {
	case err != nil:
		return 0, err
	case len(rest) != 0:
		return 0, fmt.Errorf("%d bytes left over", len(rest))
	case n < 0 || n > 255:
		return 0, fmt.Errorf("value is %d, expected 0 to 255", n)
	}
	return uint8(n), nil
}

func ia5(value []byte, limit int) (string, error) {
	var s string
	rest, err := asn1.UnmarshalWithParams(value, &s, "ia5")
	switch {
	case err != nil:
		return "", err
	case len(rest) != 0:
		return "", fmt.Errorf("%d bytes left over", len(rest))
	case s == "" || len(s) > limit:
		return "", fmt.Errorf("text has %d characters, expected 1 to %d", len(s), limit)
	}
	return s, nil
}

// hwID reads a chip's number: bare bytes as AMD writes it, or the same inside an OCTET STRING.
func hwID(value []byte) ([]byte, error) {
	for _, l := range []int{Turin.ChipIDSize(), ChipIDSize} {
		switch {
		case len(value) == l:
			return value, nil
		case len(value) == l+2 && value[0] == asn1.TagOctetString && int(value[1]) == l:
			return value[2:], nil
		}
	}
	return nil, fmt.Errorf("hwID has %d bytes, expected %d or %d", len(value), Turin.ChipIDSize(), ChipIDSize)
}
