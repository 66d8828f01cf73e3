package corim

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

type m = map[any]any

type a = []any

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tag(n uint64, v any) cbor.Tag { return cbor.Tag{Number: n, Content: v} }

var uuid = []byte{0x31, 0xfb, 0x5a, 0xbf, 2, 0x3e, 0x49, 0x92, 0xaa, 0x4e, 0x95, 0xf9, 0xc1, 0x50, 0x3b, 0xfa}

// sample is a CoRIM with a measurement of every kind of element.
func sample(t testing.TB) m {
	class := m{0: m{0: tag(600, []byte("x")), 1: "ACME", 2: "RoadRunner", 3: 1}}
	sum := bytes.Repeat([]byte{7}, 32)
	comid := m{1: m{0: "id", 1: 0}, 4: m{0: a{
		a{class, a{
			m{0: tag(37, uuid), 1: m{2: a{a{1, sum}, a{7, bytes.Repeat([]byte{8}, 48)}}}},
			m{0: 3, 1: m{2: a{a{"own", []byte{9}}}, 4: tag(560, []byte{1, 2}), 8: "serial", 11: "name"}},
			m{0: "text", 1: m{0: m{0: "1.0"}, 4: tag(560, []byte{3})}},
		}},
		a{m{1: tag(550, []byte("instance"))}, a{
			m{1: m{2: a{a{1, sum}}}},
			m{0: tag(111, []byte{1, 2}), 1: m{1: 4, 4: tag(563, a{[]byte{1}, []byte{2}})}},
		}},
	}}}
	return m{0: "id", 1: a{tag(505, []byte("coswid")), tag(506, encode(t, comid))}, 3: a{}, 4: m{0: tag(1, 1000), 1: tag(1, 2000.5)}}
}

func TestParse(t *testing.T) {
	data := encode(t, sample(t))
	for name, doc := range map[string][]byte{
		"bare": data, "501": encode(t, tag(501, cbor.RawMessage(data))), "500 501": encode(t, tag(500, tag(501, cbor.RawMessage(data)))),
	} {
		d, err := Parse(doc)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !d.NotBefore.Equal(time.Unix(1000, 0)) || !d.NotAfter.Equal(time.Unix(2000, 0)) {
			t.Errorf("%s: validity is %+v", name, d.Validity)
		}
		var got []string
		for _, x := range d.Measurements {
			got = append(got, strings.Join([]string{x.Vendor, x.Model, x.Key, x.Name, x.Serial}, "/")+" "+
				strings.Repeat("d", len(x.Digests))+strings.Repeat("r", len(x.Raw)))
		}
		want := "ACME/RoadRunner/31fb5abf-023e-4992-aa4e-95f9c1503bfa// dd|ACME/RoadRunner/claim3/name/serial drr|" +
			"ACME/RoadRunner/text// r|//// d|//// "
		if s := strings.Join(got, "|"); s != want {
			t.Errorf("%s:\n got %s\nwant %s", name, s, want)
		}
		if d.Measurements[3].Identity == d.Measurements[4].Identity || d.Measurements[0].Identity == d.Measurements[1].Identity {
			t.Errorf("%s: different elements have one identity", name)
		}
	}
}

func TestBareBytesAreACoMID(t *testing.T) {
	s := sample(t)
	s[1] = a{s[1].(a)[1].(cbor.Tag).Content}
	if d, err := Parse(encode(t, s)); err != nil || len(d.Measurements) != 5 {
		t.Errorf("got %v, %v", d, err)
	}
	s[1] = a{[]byte("not CBOR")}
	if _, err := Parse(encode(t, s)); err == nil {
		t.Error("bytes that are no CoMID are accepted")
	}
}

func one(t testing.TB, measurement any) []byte {
	return encode(t, m{1: a{tag(506, encode(t, m{4: m{0: a{a{m{}, a{measurement}}}}}))}})
}

func TestRefused(t *testing.T) {
	deep := any(1)
	for range 20 {
		deep = a{deep}
	}
	for name, c := range map[string]struct {
		doc  []byte
		want string
	}{
		"empty":                  {nil, "no map"},
		"not a map":              {encode(t, a{1}), "no map"},
		"other tag":              {encode(t, tag(61, m{})), "tag 61"},
		"signed":                 {encode(t, tag(502, tag(18, a{}))), "is signed"},
		"unsigned in signed":     {encode(t, tag(502, tag(501, m{}))), "within its signature's"},
		"signed map":             {encode(t, tag(502, m{})), "no COSE_Sign1"},
		"tags upon tags":         {encode(t, tag(500, tag(500, tag(500, tag(500, tag(500, m{1: a{1}})))))), "no map"},
		"no tags":                {encode(t, m{0: "id"}), "has 0 tags"},
		"member twice":           {[]byte{0xa2, 1, 0x80, 1, 0x80}, "duplicate"},
		"rest":                   {append(encode(t, sample(t)), 0), "extraneous"},
		"digest not in pairs":    {one(t, m{1: m{2: a{a{1}}}}), "digest"},
		"digest of a wrong size": {one(t, m{1: m{2: a{a{1, []byte{1}}}}}), "gives 32"},
		"empty digest":           {one(t, m{1: m{2: a{a{"x", []byte{}}}}}), "0 bytes"},
		"long digest":            {one(t, m{1: m{2: a{a{"x", make([]byte, 200)}}}}), "200 bytes"},
		"many digests": {one(t, m{1: m{2: func() (out a) {
			for range 65 {
				out = append(out, a{"x", []byte{1}})
			}
			return
		}()}}), "65 digests"},
		"empty raw value":      {one(t, m{1: m{4: tag(560, []byte{})}}), "raw value"},
		"raw value of text":    {one(t, m{1: m{4: tag(560, "x")}}), "raw value"},
		"short UUID":           {one(t, m{0: tag(37, []byte{1})}), "UUID has 1 bytes"},
		"long text":            {one(t, m{0: strings.Repeat("x", 300)}), "300 bytes"},
		"name is a number":     {one(t, m{1: m{11: 7}}), "cannot unmarshal"},
		"deep":                 {one(t, m{1: m{14: deep}}), "nested"},
		"time is a text":       {encode(t, m{1: a{1}, 4: m{1: "never"}}), "not a number"},
		"time is NaN":          {encode(t, m{1: a{1}, 4: m{1: math.NaN()}}), "time is NaN"},
		"time is infinite":     {encode(t, m{1: a{1}, 4: m{1: math.Inf(1)}}), "time is +Inf"},
		"time is null":         {encode(t, m{1: a{1}, 4: m{1: nil}}), "not a number"},
		"time is true":         {encode(t, m{1: a{1}, 4: m{1: true}}), "not a number"},
		"time has another tag": {encode(t, m{1: a{1}, 4: m{1: tag(0, "2020-01-01T00:00:00Z")}}), "tag 0"},
		"size":                 {make([]byte, MaxDocument+1), "at most"},
	} {
		if d, err := Parse(c.doc); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v, want an error with %q", name, d, err, c.want)
		}
	}
	data := encode(t, sample(t))
	for n := range data {
		if _, err := Parse(data[:n]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
}

func TestProtected(t *testing.T) {
	meta := func(v any) []byte { return encode(t, m{0: m{0: "signer"}, 1: v}) }
	v, err := ParseProtected(encode(t, m{1: -7, 3: "application/rim+cbor", 8: meta(m{0: 100, 1: 300}), 15: m{1: "iss", 4: 200, 5: 50}}))
	if err != nil || v.NotBefore.Unix() != 100 || v.NotAfter.Unix() != 200 {
		t.Errorf("got %+v, %v", v, err)
	}
	if v, err := ParseProtected(encode(t, m{1: -7})); err != nil || v != (Validity{}) {
		t.Errorf("without times: %+v, %v", v, err)
	}
	for name, h := range map[string]any{
		"content type": m{3: "text/plain"}, "number as content type": m{3: 60}, "meta": m{8: []byte{1}}, "time": m{8: meta(m{1: "x"})},
		"expiry": m{15: m{4: "x"}}, "no map": a{},
	} {
		if v, err := ParseProtected(encode(t, h)); err == nil {
			t.Errorf("%s: accepted as %+v", name, v)
		}
	}
}

func TestValidity(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	v := Validity{NotBefore: at(10), NotAfter: at(20)}
	for s, good := range map[int64]bool{9: false, 10: true, 19: true, 20: false} {
		if err := v.Check(at(s)); (err == nil) != good {
			t.Errorf("at %d: %v", s, err)
		}
	}
	if err := (Validity{}).Check(at(5)); err != nil {
		t.Error(err)
	}
	if w := v.Within(Validity{NotBefore: at(5), NotAfter: at(15)}); w.NotBefore != at(10) || w.NotAfter != at(15) {
		t.Errorf("within: %+v", w)
	}
	if w := (Validity{}).Within(v); w != v {
		t.Errorf("within nothing: %+v", w)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encode(f, sample(f)))
	f.Add(encode(f, tag(502, tag(18, a{[]byte{}, m{}, []byte{}, []byte{}}))))
	f.Add(one(f, m{0: 1, 1: m{2: a{a{1, make([]byte, 32)}}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, signed, err := Unwrap(data); err == nil && signed {
			if _, err := Parse(data); err == nil {
				t.Fatal("a signed CoRIM is read as an unsigned one")
			}
		}
		d, err := Parse(data)
		if err != nil {
			return
		}
		for _, x := range d.Measurements {
			if len(x.Digests) > maxDigests || len(x.Key) > maxText || len(x.Raw) > maxRaw {
				t.Fatalf("out of bounds: %+v", x)
			}
		}
	})
}

func FuzzParseProtected(f *testing.F) {
	f.Add(encode(f, m{1: -7, 3: "application/rim+cbor", 8: encode(f, m{1: m{1: 300}}), 15: m{4: 200}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := ParseProtected(data); err == nil && v.NotAfter.Unix() > maxEpoch {
			t.Fatalf("out of bounds: %+v", v)
		}
	})
}
