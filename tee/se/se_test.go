package se_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/se"
	"github.com/cloister/cloister/test/evidence"
)

func TestMeasurementVectors(t *testing.T) {
	var vectors []struct {
		Name, PLD, ALD, TLD, Tag, CUID, User, Nonce, Additional, HMAC string
		Key                                                           string `json:"meas_key"`
	}
	if err := json.Unmarshal(evidence.Read(t, "ibm-se/measurement-vectors.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		b := func(text string) []byte {
			out, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		tags, err := se.ParseTags(b(v.PLD + v.ALD + v.TLD + v.Tag))
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha512.New, b(v.Key))
		mac.Write(se.Measured(tags, b(v.CUID), b(v.User), b(v.Nonce), b(v.Additional)))
		if got := hex.EncodeToString(mac.Sum(nil)); got != v.HMAC {
			t.Errorf("%s: %s, expected %s", v.Name, got, v.HMAC)
		}
	}
}

// TestRecordedRequest opens the request of another implementation, whose keys are known.
func TestRecordedRequest(t *testing.T) {
	raw := evidence.Read(t, "ibm-se/arcb.bin")
	r, err := se.ParseRequest(raw)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Bytes(); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("written again it differs (%v)", err)
	}
	if want := se.FlagNonce | se.FlagImageHostKey | se.FlagAttestationHostKey; r.Flags != want || r.Flags.AdditionalSize() != 64 {
		t.Errorf("flags = %x, expected %x", r.Flags, want)
	}
	block, err := aes.NewCipher(bytes.Repeat([]byte{0x17}, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	aad, err := r.Authenticated(len(r.Encrypted))
	if err != nil {
		t.Fatal(err)
	}
	got, err := gcm.Open(nil, r.IV[:], append(bytes.Clone(r.Encrypted), r.Tag[:]...), aad)
	if err != nil {
		t.Fatal(err)
	}
	if want := append(bytes.Repeat([]byte{0x77}, 64), bytes.Repeat([]byte{0xab}, 16)...); !bytes.Equal(got, want) {
		t.Errorf("it holds %x, expected %x", got, want)
	}
}

func TestRecordedHeader(t *testing.T) {
	raw := evidence.Read(t, "ibm-se/secure_guest.hdr")
	tags, err := se.ParseImageHeader(append(bytes.Clone(raw), "the image"...))
	if err != nil {
		t.Fatal(err)
	}
	e, err := se.ParseEvidence(evidence.Read(t, "synthetic/se/valid.json"))
	if err != nil {
		t.Fatal(err)
	}
	if tags != e.Tags && !bytes.Equal(tags.Tag[:], raw[len(raw)-16:]) {
		t.Errorf("tags = %x", tags.Bytes())
	}
	cut(t, raw, func(b []byte) error { _, err := se.ParseImageHeader(b); return err })
}

func TestRecordedExchange(t *testing.T) {
	for name, want := range map[string][5]int{
		"min_req": {16, 0, 0, 0, 0}, "min_resp": {16, 64, 0, 0, 16}, "add_req": {16, 0, 0, 0, 0}, "add_resp": {16, 64, 32, 0, 16},
		"user_req": {16, 0, 0, 256, 0}, "user_resp": {16, 64, 0, 256, 16}, "full_req": {16, 0, 0, 0, 0}, "full_resp": {16, 64, 32, 256, 16},
	} {
		raw := evidence.Read(t, "ibm-se/exchange-"+name+".bin")
		x, err := se.ParseExchange(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := [5]int{len(x.Request), len(x.Measurement), len(x.Additional), len(x.UserData), len(x.CUID)}; got != want {
			t.Errorf("%s: parts of %v bytes, expected %v", name, got, want)
		}
		if strings.HasSuffix(name, "req") && x.ExpectedMeasurement != 64 {
			t.Errorf("%s: expects a measurement of %d bytes", name, x.ExpectedMeasurement)
		}
		cut(t, raw, func(b []byte) error { _, err := se.ParseExchange(b); return err })
	}
}

// cut demands that every beginning of good input is refused.
func cut(t *testing.T, good []byte, parse func(b []byte) error) {
	t.Helper()
	for n := range good {
		if parse(good[:n]) == nil {
			t.Errorf("%d of %d bytes parsed", n, len(good))
		}
	}
}

func request(t testing.TB) []byte {
	t.Helper()
	r := &se.Request{Flags: se.FlagNonce, KeySlots: make([][se.KeySlotSize]byte, 2), Encrypted: make([]byte, 80)}
	b, err := r.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func header() []byte {
	b := make([]byte, 0x1A0+80+16+16)
	copy(b, "IBMSecEx")
	be := binary.BigEndian
	be.PutUint32(b[8:], 0x100)
	be.PutUint32(b[12:], uint32(len(b)))
	be.PutUint64(b[0x20:], 1)
	be.PutUint64(b[0x28:], 16)
	copy(b[0xE0:], "pages")
	copy(b[len(b)-16:], "the tag")
	return b
}

func exchange() []byte {
	b := make([]byte, 96)
	copy(b, "pvattest")
	be := binary.BigEndian
	be.PutUint32(b[8:], 0x100)
	be.PutUint32(b[12:], 96)
	be.PutUint32(b[24:], 32)
	be.PutUint32(b[28:], 64)
	be.PutUint32(b[32:], 64)
	return b
}

func TestBinaryForms(t *testing.T) {
	for name, c := range map[string]struct {
		good  []byte
		parse func(b []byte) error
		bad   map[string]func(b []byte)
	}{
		"request": {request(t), func(b []byte) error { _, err := se.ParseRequest(b); return err }, map[string]func(b []byte){
			"version":        func(b []byte) { b[10] = 2 },
			"size":           func(b []byte) { b[15]++ },
			"no slots":       func(b []byte) { b[0x27] = 0 },
			"many slots":     func(b []byte) { b[0x27] = 255 },
			"huge encrypted": func(b []byte) { copy(b[0x2C:], []byte{0xff, 0xff, 0xff, 0xff}) },
			"algorithm":      func(b []byte) { b[0x3B] = 2 },
		}},
		"header": {header(), func(b []byte) error { _, err := se.ParseImageHeader(b); return err }, map[string]func(b []byte){
			"magic":          func(b []byte) { b[0] = 'i' },
			"version":        func(b []byte) { b[10] = 2 },
			"small size":     func(b []byte) { b[14], b[15] = 0, 1 },
			"large size":     func(b []byte) { b[12] = 1 },
			"huge slots":     func(b []byte) { b[0x20] = 0xff },
			"wrapping slots": func(b []byte) { copy(b[0x20:], []byte{0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x34}) },
			"huge encrypted": func(b []byte) { b[0x28] = 0xff },
		}},
		"exchange": {exchange(), func(b []byte) error { _, err := se.ParseExchange(b); return err }, map[string]func(b []byte){
			"magic":       func(b []byte) { b[0] = 'P' },
			"size":        func(b []byte) { b[15]-- },
			"offset":      func(b []byte) { b[31] = 65 },
			"into itself": func(b []byte) { b[31] = 63 },
			"huge size":   func(b []byte) { copy(b[24:], []byte{0xff, 0xff, 0xff, 0xff}) },
			"huge offset": func(b []byte) { copy(b[28:], []byte{0xff, 0xff, 0xff, 0xff}) },
		}},
	} {
		if err := c.parse(c.good); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cut(t, c.good, c.parse)
		for what, change := range c.bad {
			b := bytes.Clone(c.good)
			change(b)
			if c.parse(b) == nil {
				t.Errorf("%s: parsed with a wrong %s", name, what)
			}
		}
	}
	tags, err := se.ParseImageHeader(header())
	if err != nil || string(tags.PageList[:5]) != "pages" || string(tags.Tag[:7]) != "the tag" {
		t.Errorf("tags %x, %v", tags.Bytes(), err)
	}
	for _, n := range []int{0, 256} {
		if _, err := (&se.Request{KeySlots: make([][se.KeySlotSize]byte, n)}).Bytes(); err == nil {
			t.Errorf("a request of %d key slots was made", n)
		}
	}
}

func sample(change map[string]string) []byte {
	size := map[string]int{"measurement": 64, "additional_data": 64, "user_data": 64, "cuid": 16, "encr_measurement_key": 256,
		"encr_request_nonce": 256, "image_hdr_tags": 208}
	m := map[string]string{}
	for name, n := range size {
		m[name] = base64.StdEncoding.EncodeToString(make([]byte, n))
	}
	for name, text := range change {
		m[name] = text
	}
	raw, _ := json.Marshal(m)
	return raw
}

func TestEvidence(t *testing.T) {
	if _, err := se.ParseEvidence(sample(nil)); err != nil {
		t.Error(err)
	}
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, c := range []struct{ name, text string }{
		{"measurement", b64(63)}, {"measurement", ""}, {"measurement", "*"}, {"additional_data", b64(4097)}, {"user_data",
			b64(257)}, {"cuid", b64(15)},
		{"encr_measurement_key", ""}, {"encr_request_nonce", b64(5000)}, {"image_hdr_tags", b64(207)}, {"image_hdr_tags", b64(209)},
	} {
		if _, err := se.ParseEvidence(sample(map[string]string{c.name: c.text})); err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s of %d characters: %v", c.name, len(c.text), err)
		}
	}
	for _, raw := range []string{"", "{}", "[]", `{"measurement":1}`, `"` + strings.Repeat("a", 64<<10) + `"`} {
		if _, err := se.ParseEvidence([]byte(raw)); err == nil {
			t.Errorf("%.20s: parsed", raw)
		}
	}
}

func TestAdditional(t *testing.T) {
	all := se.FlagImageHostKey | se.FlagAttestationHostKey | se.FlagSecretStore | se.FlagFirmwareState
	b := make([]byte, 128)
	b[96] = 9
	a, err := se.ParseAdditional(b, all)
	if err != nil || a.FirmwareState[0] != 9 || len(a.ImageHostKey) != 32 {
		t.Errorf("%+v, %v", a, err)
	}
	for _, n := range []int{0, 32, 63, 65, 96} {
		if _, err := se.ParseAdditional(b[:n], se.FlagImageHostKey|se.FlagAttestationHostKey); err == nil {
			t.Errorf("%d bytes parsed", n)
		}
	}
}

func FuzzBinary(f *testing.F) {
	f.Add(request(f))
	f.Add(header())
	f.Add(exchange())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := se.ParseRequest(b); err == nil {
			again, err := r.Bytes()
			if err != nil || len(again) != len(b) {
				t.Fatal(fmt.Errorf("a request of %d bytes became one of %d: %w", len(b), len(again), err))
			}
		}
		_, _ = se.ParseImageHeader(b)
		_, _ = se.ParseExchange(b)
		_, _ = se.ParseAdditional(b, se.FlagImageHostKey|se.FlagFirmwareState)
	})
}

func FuzzParseEvidence(f *testing.F) {
	f.Add(sample(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := se.ParseEvidence(raw)
		if err == nil && (len(e.Measurement) != se.MeasurementSize || len(e.UserData) > se.MaxUserData) {
			t.Fatal("half an evidence")
		}
	})
}
