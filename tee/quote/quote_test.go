package quote_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/tee/quote"
	"github.com/cloister/cloister/test/evidence"
	"github.com/cloister/cloister/test/fakedcap"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// TestRecorded compares every recorded quote with the fields of its case.
func TestRecorded(t *testing.T) {
	type quoteCase struct {
		ID, Quote string
		Fields    struct {
			Version, AKT, TEE    uint32
			BT                   uint16
			SigLen               int    `json:"sig_len"`
			CertType             uint16 `json:"cert_type"`
			CertLen              int    `json:"cert_len"`
			FMSPC, PCESVN        string
			Components           []uint8 `json:"cpusvn_components"`
			ReportData, UserData string
			MRTD                 string `json:"mr_td"`
			MREnclave            string `json:"mr_enclave"`
			TCBSVN2              string `json:"tee_tcb_svn2"`
		}
	}
	compared := 0
	for _, c := range evidence.Cases[quoteCase](t, "dcap") {
		f := c.Fields
		if f.Version == 0 {
			continue
		}
		compared++
		q, err := quote.Parse(evidence.Read(t, c.Quote))
		if err != nil {
			t.Errorf("%s: %v", c.ID, err)
			continue
		}
		if uint32(q.Header.VersionNum) != f.Version || uint32(q.TEE) != f.TEE {
			t.Errorf("%s: version %d of %v, expected %d of %#x", c.ID, q.Header.VersionNum, q.TEE, f.Version, f.TEE)
		}
		if q.Certification.Type != f.CertType || len(q.Certification.Data) != f.CertLen {
			t.Errorf("%s: certification data %v of %d bytes, expected %d of %d",
				c.ID, q.Certification, len(q.Certification.Data), f.CertType, f.CertLen)
		}
		if q.TD != nil && hex.EncodeToString(q.TD.MRTD) != f.MRTD || hexOf(q.TD) != f.TCBSVN2 {
			t.Errorf("%s: mr_td %x, tee_tcb_svn2 %s", c.ID, q.TD.MRTD, hexOf(q.TD))
		}
		if q.Enclave != nil && f.MREnclave != "" && hex.EncodeToString(q.Enclave.MREnclave) != f.MREnclave {
			t.Errorf("%s: mr_enclave %x", c.ID, q.Enclave.MREnclave)
		}
		if f.FMSPC == "" {
			continue
		}
		p := pckOf(t, q)
		pcesvn, _ := hex.DecodeString(f.PCESVN)
		if hex.EncodeToString(p.FMSPC) != f.FMSPC || p.PCESVN != uint16(pcesvn[0]) || !bytes.Equal(p.Components[:], f.Components) {
			t.Errorf("%s: FMSPC %x, PCESVN %d, components %x", c.ID, p.FMSPC, p.PCESVN, p.Components)
		}
	}
	if compared == 0 {
		t.Error("no case has fields")
	}
}

func hexOf(td *quote.TDReport) string {
	if td == nil {
		return ""
	}
	return hex.EncodeToString(td.TCBSVN2)
}

func pckOf(t *testing.T, q *quote.Quote) *quote.PCK {
	t.Helper()
	chain, ok := q.Certification.PEMChain()
	if !ok {
		t.Fatalf("certification data of type %v", q.Certification)
	}
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(quote.OIDSGXExtension) {
			p, err := quote.ParsePCK(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatal("no extension")
	return nil
}

func quotes(t testing.TB) map[string][]byte {
	w := fakedcap.New(t, now)
	return map[string][]byte{
		"v3":       w.Quote(fakedcap.Spec{Body: fakedcap.Enclave([]byte("report data"))}),
		"v4":       w.Quote(fakedcap.Spec{Body: fakedcap.TD([]byte("report data"))}),
		"v4 SGX":   w.Quote(fakedcap.Spec{Version: 4, Body: fakedcap.Enclave([]byte("report data"))}),
		"v5 1.0":   w.Quote(fakedcap.Spec{Version: 5, Body: fakedcap.TD([]byte("report data"))}),
		"v5 1.5":   w.Quote(fakedcap.Spec{Body: fakedcap.TD15([]byte("report data"))}),
		"v5 SGX":   w.Quote(fakedcap.Spec{Version: 5, Body: fakedcap.Enclave([]byte("report data"))}),
		"v3, PPID": w.Quote(fakedcap.Spec{Body: fakedcap.Enclave([]byte("report data")), CertType: 3, Chain: make([]byte, 420)}),
	}
}

// TestTruncated cuts quotes at every byte: each cut must be an error, and padding must change nothing.
func TestTruncated(t *testing.T) {
	for name, raw := range quotes(t) {
		for n := range raw {
			if _, err := quote.Parse(raw[:n]); err == nil {
				t.Fatalf("%s: the first %d of %d bytes are accepted", name, n, len(raw))
			}
		}
		q, err := quote.Parse(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		padded, err := quote.Parse(append(bytes.Clone(raw), make([]byte, 3000)...))
		if err != nil || !bytes.Equal(padded.Signed, q.Signed) || !bytes.Equal(padded.Certification.Data, q.Certification.Data) {
			t.Errorf("%s: padding changes it (%v)", name, err)
		}
		if r := q.QEReport; r.SVN() != fakedcap.QESVN || r.ProdID() != 2 || r.Debug() {
			t.Errorf("%s: QE report is %+v", name, r)
		}
		var data []byte
		if q.TD != nil {
			data = q.TD.ReportData
		} else {
			data = q.Enclave.ReportData
		}
		if !bytes.HasPrefix(data, []byte("report data")) {
			t.Errorf("%s: report data is %x", name, data)
		}
	}
}

func TestRefused(t *testing.T) {
	all := quotes(t)
	le := binary.LittleEndian
	set := func(name string, edit func([]byte)) []byte {
		b := bytes.Clone(all[name])
		edit(b)
		return b
	}
	// Offsets in a v4 TDX quote: body ends at 632, signature data from 636, outer type at 764, inner from 770.
	const data4 = 48 + quote.TD10Size + 4
	for name, c := range map[string]struct {
		raw   []byte
		fault string
	}{
		"version 2":           {set("v3", func(b []byte) { b[0] = 2 }), "version is 2"},
		"version 6":           {set("v4", func(b []byte) { b[0] = 6 }), "version is 6"},
		"P-384":               {set("v4", func(b []byte) { b[2] = 3 }), "key type is 3"},
		"other TEE":           {set("v4", func(b []byte) { b[4] = 0x82 }), "TEE type is 0x00000082"},
		"TDX version 3":       {set("v3", func(b []byte) { b[4] = 0x81 }), "version 3"},
		"other vendor":        {set("v4", func(b []byte) { b[12] ^= 1 }), "vendor"},
		"SGX called TDX":      {set("v5 SGX", func(b []byte) { b[4] = 0x81 }), "body type is 1"},
		"TDX called SGX":      {set("v5 1.5", func(b []byte) { b[4] = 0 }), "body type is 3"},
		"body type 4":         {set("v5 1.5", func(b []byte) { b[48] = 4 }), "body type is 4"},
		"body size":           {set("v5 1.5", func(b []byte) { b[50]-- }), "has size 647"},
		"data runs over":      {set("v4", func(b []byte) { le.PutUint32(b[data4-4:], 0xffffffff) }), "signature data"},
		"data cut":            {set("v4", func(b []byte) { b[data4-4]-- }), "certification data"},
		"outer type":          {set("v4", func(b []byte) { b[data4+128] = 5 }), "outer certification"},
		"outer too short":     {set("v4", func(b []byte) { b[data4+130]-- }), "left over"},
		"outer too long":      {set("v4", func(b []byte) { le.PutUint32(b[data4+130:], 0xfffffff0) }), "certification data"},
		"authentication data": {set("v4", func(b []byte) { le.PutUint16(b[data4+134+448:], 0xffff) }), "authentication data"},
		"inner too short":     {set("v4", func(b []byte) { b[data4+134+448+2+32+2]-- }), "left over"},
		"inner too long":      {set("v4", func(b []byte) { b[data4+134+448+2+32+2]++ }), "inner certification"},
		"too large":           {make([]byte, quote.MaxSize+1), "exceed"},
	} {
		if _, err := quote.Parse(c.raw); err == nil || !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %v, expected %q", name, err, c.fault)
		}
	}
}

func TestAttributes(t *testing.T) {
	w := fakedcap.New(t, now)
	for _, bit := range []int{quote.AttrDebug, quote.AttrSEPTVEDisable, quote.AttrMigratable,
		quote.AttrPKS, quote.AttrKeyLocker, quote.AttrPerfmon} {
		body := fakedcap.TD(nil)
		binary.LittleEndian.PutUint64(body[120:], 1<<bit)
		q, err := quote.Parse(w.Quote(fakedcap.Spec{Body: body}))
		if err != nil {
			t.Fatal(err)
		}
		for other := range 64 {
			if q.TD.Attribute(other) != (other == bit) {
				t.Errorf("attribute %d is %v when only %d is set", other, q.TD.Attribute(other), bit)
			}
		}
	}
}

// TestPCK flips and cuts the extension: nothing may panic, no cut may be accepted.
func TestPCK(t *testing.T) {
	der := fakedcap.New(t, now).Extension()
	p, err := quote.ParsePCK(der)
	if err != nil {
		t.Fatal(err)
	}
	if p.Components != fakedcap.Components || p.PCESVN != fakedcap.PCESVN || p.SGXType != 1 || string(p.PPID) != "0123456789abcdef" ||
		!*p.DynamicPlatform || *p.CachedKeys || !*p.SMTEnabled || string(p.PlatformInstanceID) != "platform-instanc" {
		t.Errorf("extension is %+v", p)
	}
	for n := range der {
		if _, err := quote.ParsePCK(der[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are accepted", n, len(der))
		}
		b := bytes.Clone(der)
		b[n] ^= 0x80
		_, _ = quote.ParsePCK(b)
	}
	if _, err := quote.ParsePCK(append(der, 0)); err == nil {
		t.Error("a byte behind the extension is accepted")
	}
	for name, c := range map[string]struct{ old, new, fault string }{
		"component of 256":    {"4d 01 0d 01 02 01 02 01 05", "4d 01 0d 01 02 01 02 01 85", "component 1"},
		"component twice":     {"06 0b 2a 86 48 86 f8 4d 01 0d 01 02 02", "06 0b 2a 86 48 86 f8 4d 01 0d 01 02 01", "twice"},
		"no FMSPC":            {"06 0a 2a 86 48 86 f8 4d 01 0d 01 04", "06 0a 2a 86 48 86 f8 4d 01 0d 01 09", "FMSPC is missing"},
		"member of another":   {"06 0a 2a 86 48 86 f8 4d 01 0d 01 04", "06 0a 2a 86 48 86 f8 4d 01 0d 02 04", "not below"},
		"FMSPC is an integer": {"01 0d 01 04 04 06", "01 0d 01 04 02 06", "FMSPC has ASN.1 class"},
	} {
		b := bytes.ReplaceAll(der, unhex(c.old), unhex(c.new))
		if bytes.Equal(b, der) {
			t.Fatalf("%s: nothing replaced", name)
		}
		if _, err := quote.ParsePCK(b); err == nil || !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %v, expected %q", name, err, c.fault)
		}
	}
}

func unhex(s string) []byte {
	b, _ := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	return b
}

func FuzzParse(f *testing.F) {
	for _, raw := range quotes(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := quote.Parse(b)
		if err != nil {
			return
		}
		if (q.TD == nil) == (q.Enclave == nil) || len(q.Signature) != 64 || len(q.QEReport.Raw) != quote.EnclaveSize {
			t.Fatalf("half a quote: %+v", q)
		}
		_ = q.Certification.String()
	})
}

func FuzzParsePCK(f *testing.F) {
	f.Add(fakedcap.New(f, now).Extension())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := quote.ParsePCK(b)
		if err == nil && (len(p.PPID) != 16 || len(p.FMSPC) != 6 || len(p.PCEID) != 2) {
			t.Fatalf("half an extension: %+v", p)
		}
	})
}
