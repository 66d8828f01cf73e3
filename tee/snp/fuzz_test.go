package snp_test

import (
	"bytes"
	"crypto/x509/pkix"
	"testing"

	"github.com/cloister/cloister/tee/snp"
)

func FuzzParse(f *testing.F) {
	for _, b := range samples {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := snp.Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Signed[:], b[:snp.SignedSize]) {
			t.Fatal("signed bytes changed")
		}
		text, err := snp.ToJSON(b)
		if err != nil {
			return
		}
		back, err := snp.FromJSON(text)
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("JSON does not give the bytes back: %v", err)
		}
	})
}

func FuzzFromJSON(f *testing.F) {
	for _, b := range samples {
		text, err := snp.ToJSON(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"version":2,"signature":{"r":[],"s":null}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := snp.FromJSON(text)
		if err == nil && len(b) != snp.ReportSize {
			t.Fatalf("%d bytes", len(b))
		}
	})
}

func FuzzParseLeaf(f *testing.F) {
	for _, e := range leaf() {
		f.Add(e.Value, 1)
	}
	f.Fuzz(func(t *testing.T, value []byte, at int) {
		e := leaf()
		if at < 0 || at >= len(e) {
			return
		}
		e[at] = pkix.Extension{Id: e[at].Id, Value: value}
		l, err := snp.ParseLeaf(e)
		if err == nil && (l.HWID == nil) == (l.CSPID == "") {
			t.Fatalf("neither or both kinds: %+v", l)
		}
	})
}

func FuzzParseCertTable(f *testing.F) {
	f.Add(append(table([2]uint32{48, 3}), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := snp.ParseCertTable(b)
		if err != nil {
			return
		}
		for _, e := range entries {
			_, _ = snp.DER(e.Data)
		}
	})
}
