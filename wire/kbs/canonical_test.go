package kbs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"spaces", " { \"b\" : [ 1 , true , null , false ] ,\n\"a\" : { } } ", `{"a":{},"b":[1,true,null,false]}`},
		{"empty", `[]`, `[]`},
		{"rfc8785 section 3.2.2", `{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`},
		{"rfc8785 section 3.2.3", `{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}"},
		{"escapes", `"\b\t\n\f\r\u0000\u001f\u007f\u2028<>&\/"`, "\"\\b\\t\\n\\f\\r\\u0000\\u001f\u007f\u2028<>&/\""},
		{"numbers", `[0,-0,-0.0,1,10,-1.5,1e0,100000000000000000000,1e21,123456789012345680000,9007199254740993,1e-6,1e-7,0.00001,5e-324,1.7976931348623157e308,1e-400]`,
			`[0,0,0,1,10,-1.5,1,100000000000000000000,1e+21,123456789012345680000,9007199254740992,0.000001,1e-7,0.00001,5e-324,1.7976931348623157e+308,0]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Canonical(json.RawMessage(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestCanonicalNumbers are the samples of RFC 8785, appendix B, that JSON can write.
func TestCanonicalNumbers(t *testing.T) {
	for in, want := range map[string]string{
		"-5e-324":                   "-5e-324",
		"-1.7976931348623157e+308":  "-1.7976931348623157e+308",
		"9007199254740992":          "9007199254740992",
		"-9007199254740992":         "-9007199254740992",
		"295147905179352830000":     "295147905179352830000",
		"9.999999999999997e22":      "9.999999999999997e+22",
		"1e23":                      "1e+23",
		"1.0000000000000001e23":     "1.0000000000000001e+23",
		"999999999999999700000":     "999999999999999700000",
		"999999999999999900000":     "999999999999999900000",
		"9.999999999999997e-7":      "9.999999999999997e-7",
		"333333333.3333332":         "333333333.3333332",
		"333333333.33333325":        "333333333.33333325",
		"0.000001":                  "0.000001",
		"-0.0000033333333333333333": "-0.0000033333333333333333",
		"1424953923781206.2":        "1424953923781206.2",
	} {
		got, err := Canonical(json.RawMessage(in))
		if err != nil || string(got) != want {
			t.Errorf("Canonical(%s) = %s, %v, expected %s", in, got, err, want)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"no JSON":           `{"a":}`,
		"two values":        `1 2`,
		"empty":             ``,
		"twice":             `{"a":1,"a":2}`,
		"twice by escape":   `{"a":1,"\u0061":2}`,
		"lone high":         `"\ud83d"`,
		"lone low":          `"\ude00"`,
		"high then text":    `"\ud83dx\ude00"`,
		"reversed":          `"\ude00\ud83d"`,
		"lone in a name":    `{"\ud800":1}`,
		"not UTF-8":         "\"\xff\"",
		"surrogate as CESU": "\"\xed\xa0\x80\"",
		"number overflow":   `1e400`,
		"nesting":           strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		if got, err := Canonical(json.RawMessage(in)); err == nil {
			t.Errorf("%s: got %s, expected an error", name, got)
		}
	}
	if _, err := Canonical(make(chan int)); err == nil {
		t.Error("a channel was accepted")
	}
}

func TestReportDataVectors(t *testing.T) {
	text, err := Canonical(map[string]any{"b": 1, "c": map[string]any{"d": "e"}, "a": "test"})
	if err != nil || string(text) != `{"a":"test","b":1,"c":{"d":"e"}}` {
		t.Fatalf("got %s, %v", text, err)
	}
	rd := RuntimeData{Nonce: "bm9uY2U=", TEEPubKey: JWK{Kty: "EC", Alg: AlgECDHES, Crv: "P-256", X: "AAAA", Y: "BBBB"}}
	none := ""
	for _, tt := range []struct {
		additional *string
		want       string
	}{
		{nil, "84311321a3f9248c2457e978ea553b35b2b6e99f0d949e55b9fc7fc1040807571644e7e47c90a2a673e49a46f265ec7a"},
		{&none, "d20490d30e5f16cba693abc1ca3c31ed977d2722d0adf01a980972d16913dc38f103c1f12abf477df0523af2b12e4b43"},
	} {
		sum, err := ReportData(rd, tt.additional, DefaultHash)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(sum); got != tt.want {
			t.Errorf("got %s, expected %s", got, tt.want)
		}
	}
	for alg, size := range map[string]int{"sha256": 32, "sha384": 48, "sha512": 64} {
		if sum, err := ReportData(rd, nil, alg); err != nil || len(sum) != size {
			t.Errorf("%s: %d bytes, %v", alg, len(sum), err)
		}
	}
	for _, alg := range []string{"", "sm3", "SHA384", "md5"} {
		if _, err := ReportData(rd, nil, alg); err == nil {
			t.Errorf("algorithm %q was accepted", alg)
		}
	}
}

// TestReportDataDropsUnknownMembers: the server forgets members it does not know,
// so both sides must hash the same ones.
func TestReportDataDropsUnknownMembers(t *testing.T) {
	var plain, extra RuntimeData
	const key = `"kty":"EC","alg":"ECDH-ES+A256KW","crv":"P-256","x":"AAAA","y":"BBBB"`
	for into, text := range map[*RuntimeData]string{
		&plain: `{"nonce":"n","tee-pubkey":{` + key + `}}`,
		&extra: `{"more":1,"nonce":"n","tee-pubkey":{"kid":"x",` + key + `}}`,
	} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	a, err := ReportData(plain, nil, DefaultHash)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReportData(extra, nil, DefaultHash)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("digests differ: %x and %x, %v", a, b, err)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{`{"b":[1,-0,1e21],"a":"\ud83d\ude00\n"}`, `[[[]]]`, `"\u0000"`, `1e-7`, `{"":{"":""}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := Canonical(json.RawMessage(in))
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("%q became %q, which is no JSON", in, once)
		}
		twice, err := Canonical(json.RawMessage(once))
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q, then %q, %v", in, once, twice, err)
		}
		var a, b any
		if json.Unmarshal(in, &a) != nil || json.Unmarshal(once, &b) != nil {
			t.Fatalf("%q or %q cannot be read", in, once)
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		// The values are the same, but for the sign of zero.
		if strings.ReplaceAll(string(x), "-0", "0") != strings.ReplaceAll(string(y), "-0", "0") {
			t.Fatalf("%q means %s, its canonical form %s", in, x, y)
		}
	})
}
