package csv_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/csv/csvtest"
	"github.com/cloister/cloister/test/evidence"
)

func made(t testing.TB, extended bool) (*csvtest.PKI, []byte) {
	t.Helper()
	p, err := csvtest.New()
	if err != nil {
		t.Fatal(err)
	}
	page, err := p.Make(csvtest.Report{Extended: extended, ReportData: []byte("data"), Policy: 0x12345678, ANonce: 0xa1b2c3d4})
	if err != nil {
		t.Fatal(err)
	}
	return p, page
}

func TestParseReport(t *testing.T) {
	for _, extended := range []bool{false, true} {
		p, page := made(t, extended)
		r, err := csv.ParseReport(page, extended)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(r.ReportData[:], []byte("data")) || r.Policy != 0x12345678 || r.SignatureUsage != csv.UsagePEK {
			t.Errorf("extended %t: report data %x, policy %x, signature by %v", extended, r.ReportData, r.Policy, r.SignatureUsage)
		}
		if r.Policy.HSKVersion() != 6 || r.Policy.CEKVersion() != 5 || r.Policy.APIMajor() != 0x34 || r.Policy.APIMinor() != 0x12 {
			t.Errorf("policy %x is taken apart wrongly", r.Policy)
		}
		if !bytes.Equal(r.Signer.PEK, p.PEKCert) || r.Signer.Serial != csvtest.Serial {
			t.Errorf("extended %t: the tail is not read, serial %q", extended, r.Signer.Serial)
		}
	}
}

func TestRefused(t *testing.T) {
	p, page := made(t, false)
	for _, n := range []int{0, 1, csv.ReportV1Size - 1, csv.PageSize + 1} {
		if _, err := csv.ParseReport(make([]byte, n), false); err == nil {
			t.Errorf("report of %d bytes parsed", n)
		}
	}
	for _, n := range []int{0, csv.RootCertSize - 1, csv.RootCertSize + 1, csv.ChainSize - 1} {
		if _, err := csv.ParseRootCert(make([]byte, n)); err == nil {
			t.Errorf("root certificate of %d bytes parsed", n)
		}
		if _, err := csv.ParseCert(make([]byte, n)); err == nil {
			t.Errorf("certificate of %d bytes parsed", n)
		}
		if _, _, err := csv.ParseChain(make([]byte, n)); err == nil {
			t.Errorf("chain of %d bytes parsed", n)
		}
	}
	for name, change := range map[string]func(c []byte){
		"user id of 255 bytes": func(c []byte) { c[164] = 255 },
		"huge user id":         func(c []byte) { c[165] = 0xff },
		"curve 2":              func(c []byte) { c[16] = 2 },
		"x of 33 bytes":        func(c []byte) { c[20+32] = 1 },
		"r of 72 bytes":        func(c []byte) { c[1052+71] = 1 },
	} {
		c := bytes.Clone(p.PEKCert)
		change(c)
		if _, err := csv.ParseCert(c); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	for _, serial := range []string{"", "../../etc", "A B", "a\x00b", strings.Repeat("a", 65)} {
		if _, err := csv.ParseSerial([]byte(serial)); err == nil {
			t.Errorf("serial number %q parsed", serial)
		}
	}
	for _, c := range []struct {
		magic string
		flags uint32
	}{{"ATTESTATION_EXT\x00", 2}, {"ATTESTATION_EXT", 1}, {"something else..", 0}} {
		if _, err := csv.ParseRawEvidence(c.magic, c.flags, page, nil); err == nil {
			t.Errorf("magic %q with flags %d parsed", c.magic, c.flags)
		}
	}
}

func TestEvidenceJSON(t *testing.T) {
	p, _ := made(t, false)
	raw, err := p.Evidence(csvtest.Report{}, p.Chain, "bG9n")
	if err != nil {
		t.Fatal(err)
	}
	e, err := csv.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(e.PEK, p.PEKCert) || !bytes.Equal(e.Chain, p.Chain) || e.EventLog != "bG9n" {
		t.Error("certificates do not survive JSON")
	}
	for name, path := range map[string][]string{
		"short data":    {"attestation_report", "data"},
		"short magic":   {"attestation_report", "magic"},
		"short x":       {"cert_chain", "pek", "body", "data", "pubkey", "key", "x"},
		"short user id": {"cert_chain", "hsk_cek", "hsk", "body", "user_id"},
		"one signature": {"cert_chain", "hsk_cek", "cek", "sigs"},
		"serial":        {"serial_number"},
	} {
		var v map[string]any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		m := v
		for _, key := range path[:len(path)-1] {
			m = m[key].(map[string]any)
		}
		m[path[len(path)-1]] = m[path[len(path)-1]].([]any)[:1]
		if path[0] == "serial_number" {
			m["serial_number"] = []any{256}
		}
		changed, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := csv.ParseEvidence(changed); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

// TestRecordedPEK compares the JSON form of a certificate with its binary form.
func TestRecordedPEK(t *testing.T) {
	e, err := csv.ParseEvidence(evidence.Read(t, "hygon-csv/coco-evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(e.PEK, evidence.Read(t, "hygon-csv/coco-pek.cert")) {
		t.Error("the PEK is not that of coco-pek.cert")
	}
	if e.Serial != "KPA64911240507" || e.Chain != nil {
		t.Errorf("serial %q, chain of %d bytes", e.Serial, len(e.Chain))
	}
}

func FuzzParseReport(f *testing.F) {
	for _, extended := range []bool{false, true} {
		p, page := made(f, extended)
		f.Add(page, extended)
		f.Add(p.Chain, extended)
	}
	f.Fuzz(func(t *testing.T, b []byte, extended bool) {
		if r, err := csv.ParseReport(b, extended); err == nil && len(r.Signer.PEK) != csv.CertSize {
			t.Fatal("report without a PEK")
		}
		_, _ = csv.ParseRootCert(b)
		_, _ = csv.ParseCert(b)
		_, _, _ = csv.ParseChain(b)
	})
}

func FuzzParseEvidence(f *testing.F) {
	p, _ := made(f, true)
	for _, extended := range []bool{false, true} {
		raw, err := p.Evidence(csvtest.Report{Extended: extended}, p.Chain, "bG9n")
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := csv.ParseEvidence(raw)
		if err == nil && (e.Report == nil || len(e.PEK) != csv.CertSize || e.Serial == "") {
			t.Fatal("half an evidence")
		}
	})
}
