package snp_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

// sample is a report in which no two bytes that JSON can carry are likely to be alike.
func sample(version uint32, cpu [3]byte, tcb [8]byte) []byte {
	b := make([]byte, snp.ReportSize)
	for _, r := range [][2]int{{0x004, 0x038}, {0x040, 0x04c}, {0x050, 0x180}, {0x1a0, 0x1e0}, {0x1e8, 0x1eb}, {0x1ec, 0x1ef},
		{0x2a0, 0x2a0 + 48}, {0x2e8, 0x2e8 + 48}} {
		for i := r[0]; i < r[1]; i++ {
			b[i] = byte(i*7 + i>>8 + 1)
		}
	}
	binary.LittleEndian.PutUint32(b, version)
	for _, at := range []int{0x038, 0x180, 0x1e0, 0x1f0} {
		copy(b[at:], tcb[:])
		b[at+7] = byte(at) + 1
	}
	if version >= 3 {
		copy(b[0x188:], cpu[:])
	}
	if version >= 5 {
		binary.LittleEndian.PutUint64(b[0x1f8:], 0x0102030405060708)
		binary.LittleEndian.PutUint64(b[0x200:], 0x1112131415161718)
	}
	return b
}

var samples = map[string][]byte{
	"v2":    sample(2, [3]byte{}, [8]byte{1, 2, 0, 0, 0, 0, 3, 4}),
	"milan": sample(3, [3]byte{0x19, 0x01, 1}, [8]byte{1, 2, 0, 0, 0, 0, 3, 4}),
	"genoa": sample(4, [3]byte{0x19, 0xaf, 1}, [8]byte{1, 2, 0, 0, 0, 0, 3, 4}),
	"turin": sample(5, [3]byte{0x1a, 0x02, 1}, [8]byte{9, 1, 2, 3, 0, 0, 0, 4}),
}

func TestJSONRoundTrip(t *testing.T) {
	for name, b := range samples {
		text, err := snp.ToJSON(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := snp.FromJSON(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(b, back) {
			t.Errorf("%s: the bytes changed", name)
		}
	}
}

func TestJSONMembers(t *testing.T) {
	text, err := snp.ToJSON(samples["v2"])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // 64-bit numbers are no floats
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	delete(m, "launch_mit_vector")
	delete(m, "current_mit_vector")
	m["a member of the future"] = map[string]any{"x": 1}
	edit := func(change func(m map[string]any)) ([]byte, error) {
		c := map[string]any{}
		for k, v := range m {
			c[k] = v
		}
		change(c)
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return snp.FromJSON(text)
	}
	if b, err := edit(func(map[string]any) {}); err != nil || !bytes.Equal(b, samples["v2"]) {
		t.Errorf("absent and extra members: %v", err)
	}
	if b, err := edit(func(m map[string]any) { m["family_id"] = nil }); err != nil || !bytes.Equal(b[0x10:0x20], make([]byte, 16)) {
		t.Errorf("null is not zero: %v", err)
	}
	for name, change := range map[string]func(m map[string]any){
		"short array":    func(m map[string]any) { m["measurement"] = []int{1, 2, 3} },
		"long array":     func(m map[string]any) { m["measurement"] = make([]int, 49) },
		"base64 array":   func(m map[string]any) { m["host_data"] = strings.Repeat("A", 43) + "=" },
		"number too big": func(m map[string]any) { m["version"] = 1 << 33 },
		"byte too big":   func(m map[string]any) { m["family_id"] = append(make([]int, 15), 256) },
		"no signature":   func(m map[string]any) { delete(m, "signature") },
		"null signature": func(m map[string]any) { m["signature"] = nil },
		"half signature": func(m map[string]any) { m["signature"] = map[string]any{"r": make([]int, 72)} },
		"unknown CPU":    func(m map[string]any) { m["version"], m["cpuid_fam_id"] = 3, 0x17 },
		"no CPU":         func(m map[string]any) { m["version"] = 3 },
	} {
		if _, err := edit(change); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestParse(t *testing.T) {
	b := samples["turin"]
	r, err := snp.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != 5 || r.VMPL != binary.LittleEndian.Uint32(b[0x30:]) || r.ReportID[0] != b[0x140] || r.HostData[31] != b[0xdf] ||
		r.Current.Build != b[0x1e8] || r.Committed.Major != b[0x1ee] || r.LaunchMitVector != 0x0102030405060708 || r.R[47] != b[0x2a0] ||
		r.S[0] != b[0x2e8+47] || !bytes.Equal(r.Signed[:], b[:snp.SignedSize]) {
		t.Errorf("fields are wrong: %+v", r)
	}
	if got := snp.DecodeTCB(snp.Turin, r.ReportedTCB); got != (snp.TCB{FMC: 9, BootLoader: 1, TEE: 2, SNP: 3, Microcode: 0x81}) {
		t.Errorf("TCB is %s", got)
	}
	for n := range b {
		if _, err := snp.Parse(b[:n]); err == nil {
			t.Fatalf("%d bytes are accepted", n)
		}
	}
	if _, err := snp.Parse(append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte too many is accepted")
	}
	for _, at := range []int{0x2a0 + 48, 0x2a0 + 71, 0x2e8 + 48, 0x2e8 + 71, 0x330, 0x49f} {
		c := bytes.Clone(b)
		c[at] = 1
		if _, err := snp.Parse(c); err == nil {
			t.Errorf("reserved byte %#x is ignored", at)
		}
	}
	for _, v := range []byte{0, 1} {
		c := bytes.Clone(b)
		c[0] = v
		if _, err := snp.Parse(c); err == nil {
			t.Errorf("version %d is accepted", v)
		}
	}
	c := bytes.Clone(b)
	c[0x208] = 1
	if _, err := snp.Parse(c); err != nil {
		t.Errorf("a reserved signed byte: %v", err)
	}
	if _, err := snp.ToJSON(c); err == nil || !strings.Contains(err.Error(), "0x208") {
		t.Errorf("JSON loses a reserved byte: %v", err)
	}
}

func TestBits(t *testing.T) {
	flags := map[int]func(snp.Policy) bool{
		16: snp.Policy.SMTAllowed, 17: snp.Policy.ReservedOne, 18: snp.Policy.MigrateMA, 19: snp.Policy.Debug,
		20: snp.Policy.SingleSocket, 21: snp.Policy.CXLAllowed, 22: snp.Policy.AES256XTS, 23: snp.Policy.RAPLDisabled,
		24: snp.Policy.CiphertextHiding, 25: snp.Policy.PageSwapDisabled,
	}
	info := map[int]func(snp.PlatformInfo) bool{
		0: snp.PlatformInfo.SMTEnabled, 1: snp.PlatformInfo.TSMEEnabled, 2: snp.PlatformInfo.ECCEnabled,
		3: snp.PlatformInfo.RAPLDisabled, 4: snp.PlatformInfo.CiphertextHiding, 5: snp.PlatformInfo.AliasCheckComplete,
	}
	for bit := range 64 {
		for want, get := range flags {
			if get(1<<bit) != (bit == want) {
				t.Errorf("policy bit %d is taken for bit %d", bit, want)
			}
		}
		for want, get := range info {
			if get(1<<bit) != (bit == want) {
				t.Errorf("platform bit %d is taken for bit %d", bit, want)
			}
		}
	}
	if p := snp.Policy(0x3011f); p.ABIMajor() != 1 || p.ABIMinor() != 0x1f {
		t.Errorf("ABI is %d.%d", p.ABIMajor(), p.ABIMinor())
	}
	if k := snp.KeyInfo(0b00111); !k.AuthorKeyEnabled() || !k.MaskChipKey() || k.SigningKey() != snp.VLEK {
		t.Errorf("key info %b", k)
	}
	if k := snp.KeyInfo(0b11100); k.AuthorKeyEnabled() || k.MaskChipKey() || k.SigningKey() != snp.None {
		t.Errorf("key info %b", k)
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		family, model uint8
		want          snp.Line
	}{
		{0x19, 0, snp.Milan}, {0x19, 0x0f, snp.Milan}, {0x19, 0x10, snp.Genoa}, {0x19, 0x1f, snp.Genoa}, {0x19, 0x20, 0},
		{0x19, 0x9f, 0}, {0x19, 0xa0, snp.Genoa}, {0x19, 0xaf, snp.Genoa}, {0x19, 0xb0, 0}, {0x1a, 0, snp.Turin}, {0x1a, 0x11, snp.Turin},
		{0x1a, 0x12, 0}, {0x17, 1, 0}, {0, 0, 0},
	} {
		got, err := snp.LineOfCPU(c.family, c.model)
		if got != c.want || (err == nil) != c.want.Known() {
			t.Errorf("family %#x model %#x is %v, %v", c.family, c.model, got, err)
		}
	}
	for _, l := range snp.Lines() {
		tcb := snp.TCB{BootLoader: 1, TEE: 2, SNP: 3, Microcode: 4}
		if l.HasFMC() {
			tcb.FMC = 5
		}
		if got := snp.DecodeTCB(l, tcb.Encode(l)); got != tcb {
			t.Errorf("TCB of %s: %s", l, got)
		}
		for _, prefix := range []string{"SEV-", "SEV-VLEK-"} {
			got, vlek, err := snp.LineOfIssuer(prefix + l.String())
			if got != l || vlek != (prefix != "SEV-") || err != nil {
				t.Errorf("issuer %s%s: %v %t %v", prefix, l, got, vlek, err)
			}
		}
	}
	for _, cn := range []string{"", "SEV-", "SEV-Rome", "Milan", "SEV-VLEK-", "ARK-Milan"} {
		if _, _, err := snp.LineOfIssuer(cn); err == nil {
			t.Errorf("issuer %q is accepted", cn)
		}
	}
}

func TestCertTable(t *testing.T) {
	blob := evidence.Read(t, "amd-sev-snp/genoa-v3/auxblob.bin")
	entries, err := snp.ParseCertTable(blob)
	if err != nil {
		t.Fatal(err)
	}
	want := evidence.Read(t, "amd-sev-snp/genoa-v3/vcek.der")
	var types []string
	for _, e := range entries {
		types = append(types, string(e.GUID.Type()))
		der, err := snp.DER(e.Data)
		if err != nil {
			t.Fatalf("%s: %v", e.GUID, err)
		}
		if e.GUID.Type() == snp.CertVCEK && !bytes.Equal(der, want) {
			t.Error("the VCEK of the table is another one")
		}
	}
	if got := strings.Join(types, " "); got != "ARK ASK VCEK" {
		t.Errorf("the table has %s", got)
	}
}

func table(entries ...[2]uint32) []byte {
	id, err := hex.DecodeString("a8074bc2a25a483eaae639c045a0b8a1")
	if err != nil {
		panic(err)
	}
	var b []byte
	for _, e := range entries {
		b = append(b, id...)
		b = binary.LittleEndian.AppendUint32(b, e[0])
		b = binary.LittleEndian.AppendUint32(b, e[1])
	}
	return append(b, make([]byte, 24)...)
}

func TestCertTableBounds(t *testing.T) {
	good := append(table([2]uint32{48, 3}), 1, 2, 3)
	entries, err := snp.ParseCertTable(good)
	if err != nil || len(entries) != 1 || entries[0].GUID.Type() != snp.CertVLEK || !bytes.Equal(entries[0].Data, []byte{1, 2, 3}) {
		t.Fatalf("got %v, %v", entries, err)
	}
	for n := range good {
		if _, err := snp.ParseCertTable(good[:n]); err == nil {
			t.Errorf("%d bytes are accepted", n)
		}
	}
	many := make([][2]uint32, 33)
	for name, b := range map[string][]byte{
		"length past the end": table([2]uint32{48, 1}),
		"offset past the end": table([2]uint32{49, 0}),
		"sum over 32 bits":    table([2]uint32{0xfffffff0, 0x20}),
		"33 entries":          table(many...),
		"huge":                make([]byte, 1<<17),
	} {
		if _, err := snp.ParseCertTable(b); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestDER(t *testing.T) {
	for name, data := range map[string]string{
		"nothing": "", "half PEM": "-----BEGIN CERTIFICATE-----\nAAAA\n", "a key": "-----BEGIN EC KEY-----\nAAAA\n-----END EC KEY-----\n",
		"too long": strings.Repeat("x", 1<<17),
	} {
		if _, err := snp.DER([]byte(data)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	got, err := snp.DER([]byte("\n-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"))
	if err != nil || !bytes.Equal(got, []byte{1, 2, 3}) {
		t.Errorf("got %x, %v", got, err)
	}
}
