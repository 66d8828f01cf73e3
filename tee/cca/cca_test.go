package cca_test

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/cloister/cloister/tee/cca"
	"github.com/cloister/cloister/tee/cca/ccatest"
)

func token(t testing.TB, change func(m *ccatest.Maker)) []byte {
	t.Helper()
	m, err := ccatest.New()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Token()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		got, err := cca.Parse(token(t, func(m *ccatest.Maker) {
			m.Legacy = legacy
			m.Realm[12345], m.Realm["spurious"] = 1, "text" // claims nobody knows
		}))
		if err != nil {
			t.Fatal(err)
		}
		if got.Platform.Lifecycle != 0x3003 || !got.Platform.Secured() || len(got.Realm.Extensible) != 4 ||
			got.Platform.Components[0].Version != "1.2" {
			t.Errorf("platform %+v, realm %+v", got.Platform, got.Realm)
		}
		point, err := got.Realm.KeyPoint()
		if err != nil || point.Curve != "P-384" || len(point.Uncompressed) != 97 {
			t.Errorf("legacy %t: key %+v, %v", legacy, point, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, change := range map[string]func(m *ccatest.Maker){
		"no challenge":    func(m *ccatest.Maker) { delete(m.Realm, 10) },
		"short challenge": func(m *ccatest.Maker) { m.Realm[10] = make([]byte, 63) },
		"text challenge": func(m *ccatest.Maker) {
			m.Realm[10] = "0123456789012345678901234567890123456789012345678901234567890123"
		},
		"no personalization":     func(m *ccatest.Maker) { delete(m.Realm, 44235) },
		"three measurements":     func(m *ccatest.Maker) { m.Realm[44239] = m.Realm[44239].([]any)[:3] },
		"short measurement":      func(m *ccatest.Maker) { m.Realm[44239].([]any)[3] = []byte{1} },
		"short initial":          func(m *ccatest.Maker) { m.Realm[44238] = make([]byte, 31) },
		"no realm hash":          func(m *ccatest.Maker) { delete(m.Realm, 44240) },
		"realm profile":          func(m *ccatest.Maker) { m.Realm[265] = "tag:arm.com,2029:realm" },
		"platform profile":       func(m *ccatest.Maker) { m.Platform[265] = "PSA" },
		"no platform profile":    func(m *ccatest.Maker) { delete(m.Platform, 265) },
		"short implementation":   func(m *ccatest.Maker) { m.Platform[2396] = make([]byte, 31) },
		"instance of type 2":     func(m *ccatest.Maker) { m.Platform[256].([]byte)[0] = 2 },
		"short nonce":            func(m *ccatest.Maker) { m.Platform[10], m.KeepNonce = []byte{1}, true },
		"no components":          func(m *ccatest.Maker) { m.Platform[2399] = []any{} },
		"component without hash": func(m *ccatest.Maker) { m.Platform[2399] = []any{ccatest.Claims{5: make([]byte, 32)}} },
		"life cycle of 17 bits":  func(m *ccatest.Maker) { m.Platform[2395] = 0x13000 },
		"129 components": func(m *ccatest.Maker) {
			var c []any
			for range 129 {
				c = append(c, m.Platform[2399].([]any)[0])
			}
			m.Platform[2399] = c
		},
		"deep nesting": func(m *ccatest.Maker) {
			var v any = 1
			for range 20 {
				v = []any{v}
			}
			m.Realm[99] = v
		},
	} {
		if _, err := cca.Parse(token(t, change)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

func TestDuplicateKeysAndForms(t *testing.T) {
	good := token(t, nil)
	pair := []byte{0x19, 0xac, 0xca, 0x41, 0x00} // 44234: h'00'
	for name, b := range map[string][]byte{
		"empty":             nil,
		"no tag":            {0xa0},
		"other tag":         append([]byte{0xd9, 0x01, 0x90}, good[3:]...),
		"trailing byte":     append(bytes.Clone(good), 0),
		"empty map":         {0xd9, 0x01, 0x8f, 0xa0},
		"duplicate key":     append(append([]byte{0xd9, 0x01, 0x8f, 0xa2}, pair...), pair...),
		"indefinite map":    append(append([]byte{0xd9, 0x01, 0x8f, 0xbf}, pair...), 0xff),
		"huge length":       {0xd9, 0x01, 0x8f, 0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"huge byte string":  {0xd9, 0x01, 0x8f, 0xa1, 0x19, 0xac, 0xca, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"oversized":         make([]byte, 64<<10+1),
		"string for member": {0xd9, 0x01, 0x8f, 0xa1, 0x19, 0xac, 0xca, 0x61, 0x41},
	} {
		if _, err := cca.Parse(b); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	for n := range good {
		if _, err := cca.Parse(good[:n]); err == nil {
			t.Errorf("%d of %d bytes parsed", n, len(good))
		}
	}
}

func TestKeyPoint(t *testing.T) {
	cose := func(c ccatest.Claims) []byte {
		b, err := cbor.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b48 := make([]byte, 48)
	for name, r := range map[string]cca.Realm{
		"raw of odd length":  {PublicKey: make([]byte, 96)},
		"raw compressed":     {PublicKey: append([]byte{2}, make([]byte, 96)...)},
		"raw with a profile": {Profile: cca.ProfileRealm, PublicKey: append([]byte{4}, make([]byte, 96)...)},
		"OKP":                {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 1, -1: 2, -2: b48, -3: b48})},
		"unknown curve":      {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 2, -1: 8, -2: b48, -3: b48})},
		"short x":            {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 2, -1: 2, -2: b48[1:], -3: b48})},
		"compressed y":       {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 2, -1: 2, -2: b48, -3: true})},
		"no y":               {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 2, -1: 2, -2: b48})},
		"private":            {Profile: cca.ProfileRealm, PublicKey: cose(ccatest.Claims{1: 2, -1: 2, -2: b48, -3: b48, -4: b48})},
	} {
		if p, err := r.KeyPoint(); err == nil {
			t.Errorf("%s: got %s", name, p.Curve)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(token(f, nil))
	f.Add(token(f, func(m *ccatest.Maker) { m.Legacy = true }))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := cca.Parse(b)
		if err != nil {
			return
		}
		if got.Platform == nil || got.Realm == nil || len(got.Realm.Challenge) != cca.ChallengeSize {
			t.Fatal("half a token")
		}
		_, _ = got.Realm.KeyPoint()
	})
}
