package quote

import (
	"encoding/asn1"
	"fmt"
)

// OIDSGXExtension is the extension of PCK certificates that tells about the platform.
var OIDSGXExtension = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

const maxPCKExtension = 4 << 10

// PCK is the content of a PCK certificate's Intel extension (evidence-layouts.md section 2.5).
type PCK struct {
	PPID       []byte // 16
	Components [16]uint8
	PCESVN     uint16
	CPUSVN     []byte // 16
	PCEID      []byte // 2
	FMSPC      []byte // 6
	SGXType    int
	// PlatformInstanceID (16) is in certificates of the Platform CA only, as are the three flags.
	PlatformInstanceID                      []byte
	DynamicPlatform, CachedKeys, SMTEnabled *bool
}

// member is one (OID, value) pair; the last arc of the OID is what it is.
type member struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// members reads a sequence of pairs below a parent OID, keyed by the last arc. Each may occur once.
func members(der []byte, parent asn1.ObjectIdentifier) (map[int]asn1.RawValue, error) {
	var list []member
	rest, err := asn1.Unmarshal(der, &list)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%d bytes are left over", len(rest))
	}
	out := make(map[int]asn1.RawValue, len(list))
	for _, m := range list {
		n := len(parent)
		if len(m.ID) != n+1 || !m.ID[:n].Equal(parent) {
			return nil, fmt.Errorf("member %v is not below %v", m.ID, parent)
		}
		if _, dup := out[m.ID[n]]; dup {
			return nil, fmt.Errorf("member %v occurs twice", m.ID)
		}
		out[m.ID[n]] = m.Value
	}
	return out, nil
}

// ParsePCK reads the DER value of the extension.
func ParsePCK(der []byte) (*PCK, error) {
	p, err := parsePCK(der)
	if err != nil {
		return nil, fmt.Errorf("parsing PCK extension: %w", err)
	}
	return p, nil
}

func parsePCK(der []byte) (*PCK, error) {
	if len(der) > maxPCKExtension {
		return nil, fmt.Errorf("%d bytes exceed the limit of %d", len(der), maxPCKExtension)
	}
	top, err := members(der, OIDSGXExtension)
	if err != nil {
		return nil, err
	}
	p := new(PCK)
	f := &fields{of: top}
	p.PPID = f.octets("PPID", 1, 16)
	p.PCEID = f.octets("PCEID", 3, 2)
	p.FMSPC = f.octets("FMSPC", 4, 6)
	p.SGXType = f.number("SGX type", 5, asn1.TagEnum, 255)
	if _, ok := top[6]; ok {
		p.PlatformInstanceID = f.octets("platform instance id", 6, 16)
	}
	tcb := f.sequence("TCB", 2)
	for i := range p.Components {
		p.Components[i] = uint8(tcb.number(fmt.Sprintf("TCB component %d", i+1), i+1, asn1.TagInteger, 255))
	}
	p.PCESVN = uint16(tcb.number("PCESVN", 17, asn1.TagInteger, 65535))
	p.CPUSVN = tcb.octets("CPUSVN", 18, 16)
	if _, ok := top[7]; ok {
		c := f.sequence("configuration", 7)
		p.DynamicPlatform, p.CachedKeys, p.SMTEnabled = c.flag("dynamic platform", 1), c.flag("cached keys", 2), c.flag("SMT enabled", 3)
		f.adopt(c)
	}
	f.adopt(tcb)
	return p, f.err
}

// fields reads members and remembers the first failure.
type fields struct {
	of  map[int]asn1.RawValue
	err error
}

func (f *fields) adopt(g *fields) {
	if f.err == nil {
		f.err = g.err
	}
}

func (f *fields) get(name string, id, tag int) (v asn1.RawValue, ok bool) {
	if f.err != nil {
		return v, false
	}
	v, ok = f.of[id]
	if !ok {
		f.err = fmt.Errorf("%s is missing", name)
		return v, false
	}
	if v.Class != asn1.ClassUniversal || v.Tag != tag {
		f.err = fmt.Errorf("%s has ASN.1 class %d and tag %d, expected universal %d", name, v.Class, v.Tag, tag)
		return v, false
	}
	return v, true
}

func (f *fields) octets(name string, id, size int) []byte {
	v, ok := f.get(name, id, asn1.TagOctetString)
	if !ok {
		return nil
	}
	if len(v.Bytes) != size {
		f.err = fmt.Errorf("%s has %d bytes, expected %d", name, len(v.Bytes), size)
		return nil
	}
	return v.Bytes
}

// number reads an INTEGER or ENUMERATED of at most three content bytes; values here are small and not negative.
func (f *fields) number(name string, id, tag, limit int) int {
	v, ok := f.get(name, id, tag)
	if !ok {
		return 0
	}
	if len(v.Bytes) < 1 || len(v.Bytes) > 3 || v.Bytes[0]&0x80 != 0 {
		f.err = fmt.Errorf("%s is %x, expected a number from 0 to %d", name, v.Bytes, limit)
		return 0
	}
	n := 0
	for _, b := range v.Bytes {
		n = n<<8 | int(b)
	}
	if n > limit {
		f.err = fmt.Errorf("%s is %d, expected at most %d", name, n, limit)
		return 0
	}
	return n
}

func (f *fields) flag(name string, id int) *bool {
	if _, ok := f.of[id]; !ok {
		return nil
	}
	v, ok := f.get(name, id, asn1.TagBoolean)
	if !ok {
		return nil
	}
	if len(v.Bytes) != 1 {
		f.err = fmt.Errorf("%s has %d bytes, expected 1", name, len(v.Bytes))
		return nil
	}
	on := v.Bytes[0] != 0
	return &on
}

func (f *fields) sequence(name string, id int) *fields {
	v, ok := f.get(name, id, asn1.TagSequence)
	if !ok {
		return &fields{err: f.err}
	}
	of, err := members(v.FullBytes, append(append(asn1.ObjectIdentifier{}, OIDSGXExtension...), id))
	if err != nil {
		return &fields{err: fmt.Errorf("%s: %w", name, err)}
	}
	return &fields{of: of}
}
