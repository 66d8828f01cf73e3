package nvgpu

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/test/evidence"
)

// build makes a report of a few blocks and fields; the signature is zeros.
func build(indexes []byte, fields ...Field) []byte {
	b := append([]byte{spdmVersion, codeRequest, withSignature, allMeasurements}, bytes.Repeat([]byte{7}, NonceSize)...)
	b = append(b, 0)
	var record []byte
	for _, i := range indexes {
		record = append(record, i, specDMTF, 51, 0, 1, 48, 0)
		record = append(record, bytes.Repeat([]byte{i}, 48)...)
	}
	b = append(b, spdmVersion, codeResponse, 0, 0, byte(len(indexes)), byte(len(record)), byte(len(record)>>8), 0)
	b = append(b, record...)
	b = append(b, bytes.Repeat([]byte{9}, NonceSize)...)
	var opaque []byte
	for _, f := range fields {
		opaque = binary.LittleEndian.AppendUint16(opaque, uint16(f.Type))
		opaque = binary.LittleEndian.AppendUint16(opaque, uint16(len(f.Value)))
		opaque = append(opaque, f.Value...)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(opaque)))
	return append(append(b, opaque...), make([]byte, SignatureSize)...)
}

func TestParse(t *testing.T) {
	good := build([]byte{1, 2}, Field{DriverVersion, []byte("1.2\x00")}, Field{VBIOSVersion, []byte{0, 0x9f, 0, 0x96, 1, 0, 0, 0}})
	r, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := r.Measurement(2); !ok || v[0] != 2 || len(v) != 48 {
		t.Errorf("measurement 2 is %x, %v", v, ok)
	}
	if _, ok := r.Measurement(3); ok {
		t.Error("measurement 3 was found")
	}
	if got := r.Text(DriverVersion); got != "1.2" {
		t.Errorf("driver is %q", got)
	}
	if got, err := r.VBIOSVersion(false); err != nil || got != "96.00.9f.00.01" {
		t.Errorf("VBIOS is %q, %v", got, err)
	}
	if len(r.Signed) != len(good)-SignatureSize {
		t.Errorf("%d bytes are signed of %d", len(r.Signed), len(good))
	}
	for n := range good {
		if _, err := Parse(good[:n]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
	if r, err := Parse(append(bytes.Clone(good), 0)); err != nil || r.Trailing != 1 {
		t.Errorf("one byte of padding: %v", err)
	}
	if _, err := Parse(append(bytes.Clone(good), 0, 0)); err == nil {
		t.Error("two bytes of padding are accepted")
	}
}

func TestRefused(t *testing.T) {
	set := func(at int, v byte) []byte {
		b := build([]byte{1, 2}, Field{DriverVersion, []byte("1.2")})
		b[at] = v
		return b
	}
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"version", "SPDM version is 0x12", set(0, 0x12)},
		{"code", "want GET_MEASUREMENTS", set(1, 0xE1)},
		{"unsigned", "no signature", set(2, 0)},
		{"one measurement", "want all", set(3, 1)},
		{"response version", "SPDM version is 0x10", set(37, 0x10)},
		{"response code", "want MEASUREMENTS", set(38, 0x7F)},
		{"slot", "slot 1 answers", set(40, 1)},
		{"fewer blocks", "follow the last of 1", set(41, 1)},
		{"more blocks", "block 3 of 3", set(41, 3)},
		{"record length", "measurement record has", set(44, 0xFF)},
		{"specification", "want DMTF", set(46, 2)},
		{"block size", "size is 50", set(47, 50)},
		{"value size", "at most 64", set(50, 65)},
		{"index twice", "index 1 occurs twice", build([]byte{1, 1})},
		{"field twice", "driver_version occurs twice", build(nil, Field{DriverVersion, nil}, Field{DriverVersion, nil})},
		{"too big", "at most", make([]byte, MaxReport+1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

type recorded struct {
	ID, Report, Evidence string
	Fields               struct {
		Nonce                               string
		Blocks, Length, Trailing            int
		Driver, VBIOS, Project, Project_SKU string
		Chip_SKU                            string
	}
}

func decodeText(t testing.TB, text string) []byte {
	t.Helper()
	text = strings.TrimSpace(text)
	if b, err := hex.DecodeString(text); err == nil {
		return b
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecorded(t *testing.T) {
	for _, c := range evidence.Cases[recorded](t, "nvidia") {
		t.Run(c.ID, func(t *testing.T) {
			data := decodeText(t, string(evidence.Read(t, c.Report)))
			r, err := Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			f := c.Fields
			if got := hex.EncodeToString(r.Nonce[:]); got != f.Nonce {
				t.Errorf("nonce is %s, want %s", got, f.Nonce)
			}
			if len(r.Measurements) != f.Blocks || len(data) != f.Length || r.Trailing != f.Trailing {
				t.Errorf("blocks %d, length %d, trailing %d; want %+v", len(r.Measurements), len(data), r.Trailing, f)
			}
			vbios, _ := r.Field(VBIOSVersion)
			if got := hex.EncodeToString(vbios); got != f.VBIOS {
				t.Errorf("vbios is %s, want %s", got, f.VBIOS)
			}
			for typ, want := range map[FieldType]string{
				DriverVersion: f.Driver, Project: f.Project, ProjectSKU: f.Project_SKU, ChipSKU: f.Chip_SKU,
			} {
				if got := r.Text(typ); got != want {
					t.Errorf("%s is %q, want %q", typ, got, want)
				}
			}
			for n := range len(data) - r.Trailing {
				if _, err := Parse(data[:n]); err == nil {
					t.Fatalf("cut to %d bytes it is accepted", n)
				}
			}
		})
	}
	for _, c := range evidence.Cases[recorded](t, "nvidia-json") {
		var list []struct{ Evidence string }
		if err := json.Unmarshal(evidence.Read(t, c.Evidence), &list); err != nil {
			t.Fatal(err)
		}
		for i, e := range list {
			if _, err := Parse(decodeText(t, e.Evidence)); err != nil {
				t.Errorf("%s, device %d: %v", c.ID, i, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(build([]byte{1, 2, 3}, Field{DriverVersion, []byte("550")}, Field{SwitchPDI, make([]byte, 16)}))
	f.Add(build(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			return
		}
		if len(r.Signed)+SignatureSize+r.Trailing != len(data) {
			t.Fatalf("%d signed of %d", len(r.Signed), len(data))
		}
		_, _ = r.VBIOSVersion(false)
		_, _ = r.PDIs(SwitchPDI)
	})
}
