package initdata

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"testing/iotest"
)

const sample = `version = "0.1.0"
algorithm = "sha256"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = "https://broker:8080"
'''
"policy.rego" = '''
package agent_policy
default AllowRequestsFailingPolicy := false
'''
`

func TestParseAndMarshal(t *testing.T) {
	d, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != Version || d.Algorithm != SHA256 || len(d.Data) != 2 || !strings.HasPrefix(d.Data[KeyPolicy], "package agent_policy\n") {
		t.Errorf("got %+v", d)
	}
	text, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != sample {
		t.Errorf("written as\n%s\nexpected\n%s", text, sample)
	}
}

func TestMarshalHardValues(t *testing.T) {
	want := map[string]string{
		"":               "",
		"quotes":         `'''"""`,
		"ends in quote":  "it's '",
		"two in the end": "x''",
		"carriage":       "a\r\nb\rc",
		"control":        "\x00\x01\x1f\x7f\b\f",
		"leading break":  "\n\nx",
		"only break":     "\n",
		"backslash":      `\u0041 \`,
		"unicode":        "ключ 😀 \u2028",
		"tab\tkey\n\"":   "\t",
		"a.b":            "[data]\n\"policy.rego\" = 1",
	}
	text, err := (&Document{Version, SHA384, want}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if !maps.Equal(d.Data, want) {
		t.Errorf("got %q\nexpected %q", d.Data, want)
	}
	for name, bad := range map[string]*Document{
		"value not UTF-8": {Version, SHA256, map[string]string{"a": "\xff"}},
		"key not UTF-8":   {Version, SHA256, map[string]string{"\xff": "a"}},
		"no version":      {"", SHA256, map[string]string{}},
		"sm3":             {Version, "sm3", map[string]string{}},
		"no data":         {Version, SHA256, nil},
		"too large":       {Version, SHA256, map[string]string{"a": strings.Repeat("x", MaxSize)}},
	} {
		if _, err := bad.Marshal(); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	many := strings.Builder{}
	for i := range maxEntries + 1 {
		many.WriteString(hex.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(i))) + "x=''\n")
	}
	const head = "version=\"0.1.0\"\nalgorithm=\"sha256\"\n"
	for name, text := range map[string]string{
		"empty":          "",
		"no TOML":        "{}",
		"no version":     "algorithm=\"sha256\"\n[data]\n",
		"version":        "version=\"0.2.0\"\nalgorithm=\"sha256\"\n[data]\n",
		"version number": "version=1\nalgorithm=\"sha256\"\n[data]\n",
		"no algorithm":   "version=\"0.1.0\"\n[data]\n",
		"sm3":            "version=\"0.1.0\"\nalgorithm=\"sm3\"\n[data]\n",
		"upper case":     "version=\"0.1.0\"\nalgorithm=\"SHA256\"\n[data]\n",
		"no data":        head,
		"unknown member": head + "more=1\n[data]\n",
		"number value":   head + "[data]\na=1\n",
		"nested value":   head + "[data.a]\nb=\"c\"\n",
		"twice":          head + "[data]\na=\"1\"\na=\"2\"\n",
		"array":          head + "[[data]]\na=\"1\"\n",
		"not UTF-8":      head + "[data]\na=\"\xff\"\n",
		"too many":       head + "[data]\n" + many.String(),
		"too large":      head + "[data]\na=\"" + strings.Repeat("x", MaxSize) + "\"",
	} {
		if d, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %.80v", name, d)
		}
	}
	if _, err := Parse([]byte(head + "more=1\n[data]\n")); err == nil || !strings.Contains(err.Error(), "more") {
		t.Errorf("the error does not name the unknown member: %v", err)
	}
}

func TestDigest(t *testing.T) {
	sum256 := sha256.Sum256([]byte(sample))
	alg, sum, err := Digest([]byte(sample))
	if err != nil || alg != SHA256 || !bytes.Equal(sum, sum256[:]) {
		t.Errorf("got %s %x, %v", alg, sum, err)
	}
	// White space counts.
	if _, other, _ := Digest([]byte(sample + "\n")); bytes.Equal(sum, other) {
		t.Error("a change of white space did not change the digest")
	}
	for _, spelling := range []string{"sha384", "sha-384"} {
		text := []byte(strings.Replace(sample, "sha256", spelling, 1))
		want := sha512.Sum384(text)
		if alg, sum, err := Digest(text); err != nil || alg != SHA384 || !bytes.Equal(sum, want[:]) {
			t.Errorf("%s: got %s %x, %v", spelling, alg, sum, err)
		}
	}
	if _, sum, err := Digest([]byte(strings.Replace(sample, "sha256", "sha512", 1))); err != nil || len(sum) != 64 {
		t.Errorf("sha512: %d bytes, %v", len(sum), err)
	}
	if _, _, err := Digest([]byte("x")); err == nil {
		t.Error("digest of no document")
	}
}

func TestPCR8(t *testing.T) {
	got, err := PCR8(make([]byte, 32))
	// SHA-256 of 64 zero bytes.
	if want := "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b"; err != nil || hex.EncodeToString(got) != want {
		t.Errorf("got %x, %v, expected %s", got, err, want)
	}
	for _, size := range []int{0, 31, 48, 64} {
		if _, err := PCR8(make([]byte, size)); err == nil {
			t.Errorf("a digest of %d bytes was accepted", size)
		}
	}
}

func gz(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnnotation(t *testing.T) {
	value := EncodeAnnotation([]byte(sample))
	if value != EncodeAnnotation([]byte(sample)) {
		t.Error("the annotation differs from time to time")
	}
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil || !bytes.Equal(raw[4:8], make([]byte, 4)) {
		t.Errorf("gzip header %x has a time, %v", raw[:10], err)
	}
	got, err := DecodeAnnotation(" " + value + "\n")
	if err != nil || string(got) != sample {
		t.Errorf("got %q, %v", got, err)
	}
	for _, empty := range []string{"", " \n"} {
		if _, err := DecodeAnnotation(empty); !errors.Is(err, ErrNoInitdata) {
			t.Errorf("%q: %v", empty, err)
		}
	}
	encode := base64.StdEncoding.EncodeToString
	for name, bad := range map[string]string{
		"no base64":   "%%%",
		"no gzip":     encode([]byte("plain text")),
		"truncated":   encode(gz(t, sample)[:40]),
		"two members": encode(append(gz(t, sample), gz(t, "more")...)),
		"trailing":    encode(append(gz(t, sample), 0)),
		"bomb":        encode(gz(t, strings.Repeat("\x00", MaxSize+1))),
		"too large":   strings.Repeat("A", MaxCompressed*2),
		"checksum":    encode(func() []byte { b := gz(t, sample); b[len(b)-5] ^= 1; return b }()),
	} {
		if _, err := DecodeAnnotation(bad); err == nil || errors.Is(err, ErrNoInitdata) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDevice(t *testing.T) {
	image := EncodeDevice([]byte(sample))
	if len(image)%512 != 0 || string(image[:8]) != "initdata" {
		t.Fatalf("image of %d bytes starts with %q", len(image), image[:8])
	}
	got, err := DecodeDevice(bytes.NewReader(image))
	if err != nil || string(got) != sample {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := DecodeDevice(iotest.OneByteReader(bytes.NewReader(image))); err != nil || string(got) != sample {
		t.Errorf("byte by byte: got %q, %v", got, err)
	}
	for name, none := range map[string][]byte{"empty": nil, "short": []byte("init"), "zeroes": make([]byte, 512), "other": []byte("INITDATA........")} {
		if _, err := DecodeDevice(bytes.NewReader(none)); !errors.Is(err, ErrNoInitdata) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sized := func(n uint64, packed []byte) []byte {
		return append(binary.LittleEndian.AppendUint64([]byte("initdata"), n), packed...)
	}
	packed := gz(t, sample)
	for name, bad := range map[string][]byte{
		"header cut":    []byte("initdata\x01\x00"),
		"length zero":   sized(0, packed),
		"length large":  sized(MaxCompressed+1, packed),
		"length huge":   sized(1<<63, packed),
		"length beyond": sized(uint64(len(packed))+1, packed),
		"length short":  sized(uint64(len(packed))-1, packed),
		"bomb":          EncodeDevice(make([]byte, MaxSize+1)),
	} {
		if _, err := DecodeDevice(bytes.NewReader(bad)); err == nil || errors.Is(err, ErrNoInitdata) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	broken := errors.New("disk on fire")
	if _, err := DecodeDevice(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("version=\"0.1.0\"\nalgorithm=\"sha-512\"\n[data]\na=\"\\u0000\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		again, err := d.Marshal()
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", text, err)
		}
		e, err := Parse(again)
		if err != nil || e.Algorithm != d.Algorithm || !maps.Equal(e.Data, d.Data) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}

func FuzzDecodeDevice(f *testing.F) {
	f.Add(EncodeDevice([]byte(sample)))
	f.Add([]byte("initdata\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, image []byte) {
		text, err := DecodeDevice(bytes.NewReader(image))
		if err != nil {
			return
		}
		again, err := DecodeDevice(io.MultiReader(bytes.NewReader(EncodeDevice(text)), bytes.NewReader(image)))
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}

func FuzzDecodeAnnotation(f *testing.F) {
	f.Add(EncodeAnnotation([]byte(sample)))
	f.Fuzz(func(t *testing.T, value string) {
		text, err := DecodeAnnotation(value)
		if err != nil {
			return
		}
		if again, err := DecodeAnnotation(EncodeAnnotation(text)); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}
