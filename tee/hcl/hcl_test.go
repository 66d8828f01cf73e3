package hcl_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/hcl"
	"github.com/cloister/cloister/test/evidence"
)

const userData = "00AAbb"

func report(typ hcl.HardwareType, runtime string) []byte {
	b := make([]byte, 1236, 2600)
	le := binary.LittleEndian
	copy(b, "HCLA")
	for at, v := range map[int]uint32{4: 2, 8: uint32(1236 + len(runtime)), 12: 2, 1216: uint32(20 + len(runtime)), 1220: 1,
		1224: uint32(typ), 1228: 1, 1232: uint32(len(runtime))} {
		le.PutUint32(b[at:], v)
	}
	for i := range 1184 {
		b[32+i] = byte(i)
	}
	b[32] = 0x81
	return append(b, runtime...)
}

func TestParse(t *testing.T) {
	text := `{"keys":[]}`
	for _, typ := range []hcl.HardwareType{hcl.SNP, hcl.TDX} {
		b := report(typ, text)
		r, err := hcl.Parse(append(bytes.Clone(b), make([]byte, 100)...))
		if err != nil {
			t.Fatal(err)
		}
		if r.Version != 2 || r.RequestType != 2 || r.Status != 0 || r.Type != typ || r.HashType != hcl.HashSHA256 ||
			string(r.RuntimeData) != text {
			t.Errorf("got %+v", r)
		}
		raw, err := r.SNPReport()
		if (err == nil) != (typ == hcl.SNP) || err == nil && !bytes.Equal(raw, b[32:1216]) {
			t.Errorf("SNP report of %s: %v", typ, err)
		}
		td, err := r.TDReportData()
		if (err == nil) != (typ == hcl.TDX) || err == nil && !bytes.Equal(td[:], b[160:224]) {
			t.Errorf("TDREPORT of %s: %v", typ, err)
		}
		for n := range b {
			if _, err := hcl.Parse(b[:n]); err == nil {
				t.Fatalf("%d bytes are accepted", n)
			}
		}
		for _, at := range []int{0, 3, 8, 11, 1216, 1219, 1232, 1235} {
			c := append(bytes.Clone(b), make([]byte, 100)...)
			c[at] ^= 0x10
			if _, err := hcl.Parse(c); err == nil {
				t.Errorf("byte %d changed: accepted", at)
			}
		}
	}
	if _, err := hcl.Parse(append(report(hcl.SNP, text), make([]byte, 1<<17)...)); err == nil {
		t.Error("a huge report is accepted")
	}
	b := report(hcl.TDX, text)
	b[32] = 0
	r, err := hcl.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.TDReportData(); err == nil {
		t.Error("a TDREPORT of type 0 is accepted")
	}
}

func key(id, typ string, n []byte, e string) string {
	return fmt.Sprintf(`{"kid":%q,"kty":%q,"n":%q,"e":%q}`, id, typ, base64.RawURLEncoding.EncodeToString(n), e)
}

func runtimeData(keys ...string) string {
	return `{"keys":[` + strings.Join(keys, ",") + `],"vm-configuration":{"secure-boot":true},"user-data":"` + userData + `"}`
}

func TestParseRuntimeData(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	n := k.N.Bytes()
	ak, ek := key("HCLAkPub", "RSA", n, "AQAB"), key("HCLEkPub", "RSA", []byte{5}, "AQAB")
	d, err := hcl.ParseRuntimeData([]byte(runtimeData(ek, ak)))
	if err != nil {
		t.Fatal(err)
	}
	if !d.AK.Equal(&k.PublicKey) || hex.EncodeToString(d.UserData) != "00aabb" || string(d.VMConfiguration) != `{"secure-boot":true}` {
		t.Errorf("got %+v", d)
	}
	short := new(big.Int).Rsh(k.N, 1).Bytes()
	for name, text := range map[string]string{
		"nothing": "", "no object": "[]", "no key": runtimeData(), "another key": runtimeData(ek), "two keys": runtimeData(ak, ak),
		"17 keys": runtimeData(append([]string{ak}, strings.Split(strings.Repeat(ek+"\n", 16), "\n")[:16]...)...),
		"EC":      runtimeData(key("HCLAkPub", "EC", n, "AQAB")), "short": runtimeData(key("HCLAkPub", "RSA", short, "AQAB")),
		"long":      runtimeData(key("HCLAkPub", "RSA", append([]byte{1}, bytes.Repeat(n, 2)...), "AQAB")),
		"e is 1":    runtimeData(key("HCLAkPub", "RSA", n, "AQ")),
		"e is even": runtimeData(key("HCLAkPub", "RSA", n, "AQAA")), "e is long": runtimeData(key("HCLAkPub", "RSA", n, "AQABAQABAQAB")),
		"n is no base64": strings.Replace(runtimeData(ak), `"n":"`, `"n":"=`, 1), "e is no base64": runtimeData(key("HCLAkPub", "RSA", n, "=")),
		"user-data is no hex":   strings.Replace(runtimeData(ak), userData, "xy", 1),
		"user-data is too long": strings.Replace(runtimeData(ak), userData, strings.Repeat("00", 65), 1),
		"user-data is a number": strings.Replace(runtimeData(ak), `"`+userData+`"`, "1", 1),
		"huge":                  strings.Repeat(" ", 1<<17) + runtimeData(ak),
	} {
		if _, err := hcl.ParseRuntimeData([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	d, err = hcl.ParseRuntimeData([]byte(`{"keys":[` + ak + `]}`))
	if err != nil || d.UserData != nil {
		t.Errorf("without user-data: %+v, %v", d, err)
	}
}

func TestRecordings(t *testing.T) {
	for name, typ := range map[string]hcl.HardwareType{
		"azure-snp-vtpm/hcl-report.bin": hcl.SNP, "azure-tdx-vtpm/hcl-report.bin": hcl.TDX, "azure-tdx-vtpm/ita-hcl-report.bin": hcl.TDX,
	} {
		r, err := hcl.Parse(evidence.Read(t, name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.Type != typ || r.HashType != hcl.HashSHA256 {
			t.Errorf("%s is of %s, hash type %d", name, r.Type, r.HashType)
		}
		d, err := hcl.ParseRuntimeData(r.RuntimeData)
		if err != nil || len(d.UserData) != 64 || d.AK.N.BitLen() != 2048 {
			t.Fatalf("%s: %+v, %v", name, d, err)
		}
		want := sha256.Sum256(r.RuntimeData)
		got := evidence.Read(t, name)[32+0x50:][:64]
		if typ == hcl.TDX {
			data, err := r.TDReportData()
			if err != nil {
				t.Fatal(err)
			}
			got = data[:]
		}
		if !bytes.Equal(got[:32], want[:]) || !bytes.Equal(got[32:], make([]byte, 32)) {
			t.Errorf("%s: report data is %x, expected %x", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(report(hcl.SNP, `{"keys":[]}`))
	f.Add(report(hcl.TDX, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := hcl.Parse(b)
		if err != nil {
			return
		}
		if snp, err := r.SNPReport(); err == nil && len(snp) != 1184 {
			t.Fatalf("SNP report of %d bytes", len(snp))
		}
		_, _ = r.TDReportData()
		_, _ = hcl.ParseRuntimeData(r.RuntimeData)
	})
}

func FuzzParseRuntimeData(f *testing.F) {
	f.Add([]byte(runtimeData(key("HCLAkPub", "RSA", bytes.Repeat([]byte{0xff}, 256), "AQAB"))))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := hcl.ParseRuntimeData(text)
		if err == nil && (d.AK == nil || len(d.UserData) > 64) {
			t.Fatalf("got %+v", d)
		}
	})
}
