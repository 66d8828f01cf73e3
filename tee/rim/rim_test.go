package rim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/test/evidence"
)

const sample = `<SoftwareIdentity xmlns="` + nsSWID + `" xmlns:h="` + nsSHA384 + `" tagId="id">
 <Meta colloquialVersion="1.2" product="GH100" edition="GPU" xmlns:r="` + nsRIM + `" r:PlatformManufacturerId="5703"/>
 <Payload>
  <Resource type="Measurement" index="0" active="False" alternatives="1" h:Hash0="00" name="M0" size="1"/>
  <Resource type="Measurement" index="7" active="True" alternatives="2" h:Hash0="aB" h:Hash1="cd" name="M7" size="1"/>
 </Payload>
 <ds:Signature xmlns:ds="` + nsDSig + `"><ds:KeyInfo><ds:X509Data><ds:X509Certificate>
AQ
I=</ds:X509Certificate></ds:X509Data></ds:KeyInfo></ds:Signature>
</SoftwareIdentity>`

func TestParse(t *testing.T) {
	m, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if m.Meta != (Meta{TagID: "id", Version: "1.2", Product: "GH100", Edition: "GPU", ManufacturerID: "5703"}) {
		t.Errorf("meta is %+v", m.Meta)
	}
	if len(m.Measurements) != 2 || m.Measurements[0].Active || !m.Measurements[1].Active {
		t.Fatalf("measurements are %+v", m.Measurements)
	}
	v, err := m.Measurements[1].Values()
	if err != nil || len(v) != 2 || v[0][0] != 0xAB || v[1][0] != 0xCD {
		t.Errorf("values are %x, %v", v, err)
	}
	if len(m.Certificates) != 1 || string(m.Certificates[0]) != "\x01\x02" {
		t.Errorf("certificates are %x", m.Certificates)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"index twice", `index="7"`, `index="0"`, "measurement 0 occurs twice"},
		{"no payload", "Payload>", "Payloads>", "no <Payload>"},
		{"foreign payload", "<Payload>", `<Payload xmlns="urn:x">`, "no <Payload>"},
		{"second payload", "<Payload>", "<Payload/><Payload>", "more than one <Payload>"},
		{"hash without namespace", "h:Hash1", "Hash1", "no Hash1"},
		{"hash beyond alternatives", `alternatives="2"`, `alternatives="1"`, "it has 2 hashes, alternatives says 1"},
		{"alternatives beyond hashes", `alternatives="2"`, `alternatives="3"`, "no Hash2"},
		{"alternatives", `alternatives="2"`, `alternatives="x"`, "alternatives is"},
		{"no alternatives", `alternatives="2"`, ``, "no alternatives"},
		{"index", `index="7"`, `index="-1"`, "index is"},
		{"no index", `index="7"`, ``, "no index"},
		{"size", `name="M7" size="1"`, `size="x"`, "size is"},
		{"no size", `name="M7" size="1"`, ``, "no size"},
		{"other size", `name="M7" size="1"`, `size="2"`, "its size is 2"},
		{"hash not hex", `"cd"`, `"cx"`, "measurement 7: Hash1"},
		{"active", `"True"`, `"true"`, "want True or False"},
		{"foreign resource", `type="Measurement" index="7"`, `type="File" index="7"`, `type="File"`},
		{"no meta", "<Meta ", "<Beta ", "no <Meta>"},
		{"no version", `colloquialVersion="1.2"`, "", "no colloquialVersion"},
		{"root", "SoftwareIdentity", "Manifest", "want <SoftwareIdentity>"},
		{"no certificate data", "X509Data>", "X510Data>", "no <X509Data>"},
		{"no certificate", "AQ\nI=", "", "it is empty"},
		{"base64", "AQ\nI=", "A!", "not base64"},
		{"attribute twice", `size="1"`, `size="1" size="1"`, "size twice"},
		{"comment", "<Payload>", "<Payload><!-- x -->", "xml.Comment"},
		{"document type", "<SoftwareIdentity", `<!DOCTYPE x [<!ENTITY a "b">]><SoftwareIdentity`, "xml.Directive"},
		{"entity", `"M7"`, `"&a;"`, "invalid character entity"},
		{"instruction", "<Payload>", "<?x y?><Payload>", "processing instruction"},
		{"second root", "</SoftwareIdentity>", "</SoftwareIdentity><a/>", "second root"},
		{"text after root", "</SoftwareIdentity>", "</SoftwareIdentity>x", "outside of its root"},
		{"depth", "<Payload>", strings.Repeat("<a>", 20) + strings.Repeat("</a>", 20) + "<Payload>", "levels"},
		{"elements", "<Payload>", strings.Repeat("<a/>", 1100) + "<Payload>", "elements"},
		{"attributes", "<Payload>", "<Payload " + manyAttrs(200) + ">", "200 attributes"},
		{"charset", "<SoftwareIdentity", `<?xml version="1.0" encoding="x-me"?><SoftwareIdentity`, "want UTF-8"},
		{"size of all", "</SoftwareIdentity>", "</SoftwareIdentity>" + strings.Repeat(" ", MaxDocument), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := strings.ReplaceAll(sample, c.old, c.new)
			if doc == sample {
				t.Fatal("nothing was changed")
			}
			if _, err := Parse([]byte(doc)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for n := range len(sample) {
		if _, err := Parse([]byte(sample[:n])); err == nil {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
}

func manyAttrs(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" a" + strings.Repeat("b", i) + `="1"`)
	}
	return b.String()
}

// TestVectors reads the recorded vectors. Those named success_payload are payloads alone.
func TestVectors(t *testing.T) {
	dir := filepath.Join(evidence.Dir(t), "nvidia", "rim", "schema")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			doc, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			_, whole := Parse(doc)
			_, payload := ParsePayload(doc)
			switch {
			case strings.HasPrefix(e.Name(), "failure_"):
				if whole == nil || payload == nil {
					t.Errorf("accepted: whole %v, payload %v", whole, payload)
				}
			case strings.HasPrefix(e.Name(), "success_payload"):
				if payload != nil {
					t.Error(payload)
				}
			default:
				if whole != nil {
					t.Error(whole)
				}
			}
		})
	}
}

func TestRecorded(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(evidence.Dir(t), "nvidia", "rim", "*.xml"))
	if err != nil || len(files) != 9 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	for _, f := range files {
		doc, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(doc)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if len(m.Certificates) != 4 || len(m.Measurements) != 64 || m.ManufacturerID != "5703" {
			t.Errorf("%s: %d certificates, %d measurements, manufacturer %s", f, len(m.Certificates), len(m.Measurements), m.ManufacturerID)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`<?xml version="1.0"?><a/>`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := Parse(doc)
		if err != nil {
			return
		}
		for _, x := range m.Measurements {
			if v, err := x.Values(); err != nil || len(v) == 0 {
				t.Fatalf("measurement %d: %x, %v", x.Index, v, err)
			}
		}
	})
}
