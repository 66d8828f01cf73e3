package snp_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

// TestRealLeaves compares with the fields cases.json has for the recorded certificates.
func TestRealLeaves(t *testing.T) {
	type fields struct {
		ID, Leaf   string
		Extensions *struct {
			StructVersion                           int
			ProductName1                            string
			BLSPL, TEESPL, SNPSPL, UcodeSPL, FMCSPL uint8
			HWID, CSPID                             string
		} `json:"leaf_extensions"`
	}
	n := 0
	for _, c := range evidence.Cases[fields](t, "snp") {
		if c.Extensions == nil {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(evidence.Read(t, c.Leaf))
		if err != nil {
			t.Fatal(err)
		}
		l, err := snp.ParseLeaf(cert.Extensions)
		if err != nil {
			t.Fatalf("%s: %v", c.ID, err)
		}
		e := c.Extensions
		want := snp.TCB{FMC: e.FMCSPL, BootLoader: e.BLSPL, TEE: e.TEESPL, SNP: e.SNPSPL, Microcode: e.UcodeSPL}
		if l.TCB != want || l.Product != e.ProductName1 || l.StructVersion != e.StructVersion || hex.EncodeToString(l.HWID) != e.HWID {
			t.Errorf("%s: got %+v, expected %+v", c.ID, l, e)
		}
		if (l.Kind() == snp.VLEK) != strings.Contains(c.ID, "vlek") || l.HasFMC != strings.Contains(c.ID, "turin") {
			t.Errorf("%s: kind is %s, FMC %t", c.ID, l.Kind(), l.HasFMC)
		}
	}
	if n < 9 {
		t.Errorf("only %d leaves were looked at", n)
	}
}

func extension(value []byte, below ...int) pkix.Extension {
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, below...), Value: value}
}

func leaf() []pkix.Extension {
	return []pkix.Extension{
		extension([]byte{2, 1, 0}, 1), extension([]byte("\x16\x05Genoa"), 2), extension([]byte{2, 1, 1}, 3, 1),
		extension([]byte{2, 1, 2}, 3, 2), extension([]byte{2, 1, 3}, 3, 3), extension([]byte{2, 2, 0, 0xdb}, 3, 8),
		extension(make([]byte, 64), 4), {Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Value: []byte{1}},
	}
}

func TestParseLeaf(t *testing.T) {
	l, err := snp.ParseLeaf(leaf())
	if err != nil || l.TCB.Microcode != 0xdb || l.Kind() != snp.VCEK {
		t.Fatalf("got %+v, %v", l, err)
	}
	wrapped := leaf()
	wrapped[6].Value = append([]byte{4, 64}, make([]byte, 64)...)
	if l, err := snp.ParseLeaf(wrapped); err != nil || len(l.HWID) != 64 {
		t.Errorf("hwID in an OCTET STRING: %v", err)
	}
	for i := range 7 {
		e := leaf()
		if _, err := snp.ParseLeaf(append(e[:i], e[i+1:]...)); (err == nil) != (i == 0) {
			t.Errorf("without extension %d: %v", i, err)
		}
		e = leaf()
		if _, err := snp.ParseLeaf(append(e, e[i])); err == nil {
			t.Errorf("extension %d twice is accepted", i)
		}
		if _, err := snp.ParseLeaf(set(i, leaf()[i].Value[:len(leaf()[i].Value)-1])); err == nil {
			t.Errorf("extension %d cut is accepted", i)
		}
		if _, err := snp.ParseLeaf(set(i, append(leaf()[i].Value, 0))); err == nil {
			t.Errorf("extension %d with a byte too many is accepted", i)
		}
	}
	for name, e := range map[string][]pkix.Extension{
		"negative level": set(2, []byte{2, 1, 0x80}), "level of 256": set(2, []byte{2, 2, 1, 0}), "no integer": set(2, []byte{4, 1, 1}),
		"no text": set(1, []byte{0x16, 0}), "long text": set(1, append([]byte{0x16, 40}, make([]byte, 40)...)),
		"both kinds": append(leaf(), extension([]byte("\x16\x01x"), 5)), "nothing": nil,
	} {
		if _, err := snp.ParseLeaf(e); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func set(i int, value []byte) []pkix.Extension {
	e := leaf()
	e[i].Value = value
	return e
}
