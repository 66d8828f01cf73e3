package cca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/veraison/go-cose"

	"github.com/cloister/cloister/broker/verifier/cca"
	"github.com/cloister/cloister/tee/cca/ccatest"
	"github.com/cloister/cloister/test/evidence"
)

var ctx = context.Background()

func TestCases(t *testing.T) {
	type tokenCase struct{ ID, Token, CPAK, Expect string }
	for _, c := range evidence.Cases[tokenCase](t, "cca") {
		t.Run(c.ID, func(t *testing.T) {
			text := evidence.Read(t, c.CPAK)
			var anchors cca.TrustAnchors
			if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
				store, err := cca.ParseStore(text)
				if err != nil {
					t.Fatal(err)
				}
				anchors = store
			} else {
				key, err := cca.ParseJWK(text)
				if err != nil {
					t.Fatal(err)
				}
				anchors = cca.AnyPlatform{Key: key}
			}
			claims, err := cca.VerifyToken(ctx, evidence.Read(t, c.Token), cca.Options{TrustAnchors: anchors, Offline: true})
			if c.Expect == "valid" && err != nil {
				t.Error(err)
			}
			if c.Expect == "invalid" {
				if err == nil {
					t.Error("accepted")
				}
				t.Log(err)
			}
			if err == nil && claims["report_data"] == "" {
				t.Error("no report data")
			}
		})
	}
}

func TestRecordedStores(t *testing.T) {
	if _, err := cca.ParseStore(evidence.Read(t, "arm-cca/ta-bad-point.json")); err == nil {
		t.Error("a point off its curve is a trust anchor")
	}
	store, err := cca.ParseStore(evidence.Read(t, "arm-cca/tastore.json"))
	if err != nil {
		t.Fatal(err)
	}
	values, err := cca.ParseReferenceValues(evidence.Read(t, "arm-cca/rvstore.json"))
	if err != nil {
		t.Fatal(err)
	}
	o := cca.Options{TrustAnchors: store, ReferenceValues: values, Offline: true}
	for name, want := range map[string][2]string{"token-trustee": {"match", "match"}, "token-ffm-00": {"match", "mismatch"}} {
		claims, err := cca.VerifyToken(ctx, evidence.Read(t, "arm-cca/"+name+".cbor"), o)
		if err != nil {
			t.Fatal(err)
		}
		got := [2]string{
			claims["platform"].(map[string]any)["cca-platform-reference-values"].(string),
			claims["realm"].(map[string]any)["cca-realm-reference-values"].(string),
		}
		if got != want {
			t.Errorf("%s: reference values %v, expected %v", name, got, want)
		}
	}
	if _, err := cca.VerifyToken(ctx, evidence.Read(t, "arm-cca/token-es256.cbor"), o); err == nil || !strings.Contains(err.Error(),
		"no trust anchor") {
		t.Errorf("unknown platform: %v", err)
	}
}

func maker(t testing.TB, change func(m *ccatest.Maker)) *ccatest.Maker {
	t.Helper()
	m, err := ccatest.New()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(m)
	}
	return m
}

func token(t testing.TB, m *ccatest.Maker) []byte {
	t.Helper()
	b, err := m.Token()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wrap(token []byte) json.RawMessage {
	var list []string
	for _, b := range token {
		list = append(list, fmt.Sprint(b))
	}
	return json.RawMessage(`{"token":[` + strings.Join(list, ",") + `]}`)
}

func options(m *ccatest.Maker) cca.Options {
	return cca.Options{TrustAnchors: cca.AnyPlatform{Key: &m.CPAK.PublicKey}, ExpectedReportData: bytes.Repeat([]byte{7}, 64)}
}

func TestVerify(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		m := maker(t, func(m *ccatest.Maker) {
			m.Legacy = legacy
			m.Realm[44235] = append(bytes.Repeat([]byte{8}, 48), make([]byte, 16)...)
			m.Realm[10] = append(bytes.Repeat([]byte{7}, 48), make([]byte, 16)...)
		})
		o := options(m)
		o.ExpectedReportData, o.InitDataDigest = bytes.Repeat([]byte{7}, 48), bytes.Repeat([]byte{8}, 48)
		claims, err := cca.Verify(ctx, wrap(token(t, m)), o)
		if err != nil {
			t.Fatal(err)
		}
		realm, platform := claims["realm"].(map[string]any), claims["platform"].(map[string]any)
		if got := realm["cca-realm-initial-measurement"]; got != base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{9}, 32)) {
			t.Errorf("initial measurement %v", got)
		}
		if claims["init_data"] != hex.EncodeToString(m.Realm[44235].([]byte)) ||
			claims["report_data"] != hex.EncodeToString(m.Realm[10].([]byte)) {
			t.Errorf("claims %v", claims)
		}
		if platform["cca-platform-lifecycle"] != int64(0x3003) || platform["cca-platform-reference-values"] != "none" {
			t.Errorf("platform %v", platform)
		}
	}
}

func TestRefused(t *testing.T) {
	other := maker(t, nil)
	for name, c := range map[string]struct {
		change  func(m *ccatest.Maker)
		options func(o *cca.Options)
		why     string
	}{
		"other session":    {nil, func(o *cca.Options) { o.ExpectedReportData = []byte{7} }, "cca-realm-challenge = "},
		"no report data":   {nil, func(o *cca.Options) { o.ExpectedReportData = nil }, "report data of 0"},
		"long report data": {nil, func(o *cca.Options) { o.ExpectedReportData = make([]byte, 65) }, "report data of 65"},
		"other init data":  {nil, func(o *cca.Options) { o.InitDataDigest = make([]byte, 64) }, "personalization-value = "},
		"short init data":  {nil, func(o *cca.Options) { o.InitDataDigest = []byte{} }, "init-data digest of 0"},
		"no anchors":       {nil, func(o *cca.Options) { o.TrustAnchors = nil }, "no trust anchors"},
		"other anchor": {nil, func(o *cca.Options) { o.TrustAnchors = cca.AnyPlatform{Key: &other.CPAK.PublicKey} },
			"verification error"},
		"unsecured":            {func(m *ccatest.Maker) { m.Platform[2395] = 0x4000 }, nil, "cca-platform-lifecycle"},
		"nonce of another key": {func(m *ccatest.Maker) { m.Platform[10], m.KeepNonce = make([]byte, 32), true }, nil, "platform vouches"},
		"unknown hash":         {func(m *ccatest.Maker) { m.Realm[44240] = "md5" }, nil, "hash algorithm"},
		"critical header": {func(m *ccatest.Maker) {
			m.Protected = cose.ProtectedHeader{cose.HeaderLabelCritical: []any{int64(-70000)}, int64(-70000): 1}
		}, nil, "critical"},
		"algorithm of another curve": {func(m *ccatest.Maker) { m.RAKAlg = cose.AlgorithmES256 }, nil, "algorithm mismatch"},
		"key off its curve": {func(m *ccatest.Maker) {
			m.Legacy = true
			key, _ := m.Key()
			key[96] ^= 1
			m.Realm[44237] = key
		}, nil, "its key"},
		"realm signed by another": {func(m *ccatest.Maker) {
			key, _ := m.Key()
			m.Realm[44237] = key
			m.RAK = other.RAK
		}, nil, "realm token: verification error"},
	} {
		m := maker(t, c.change)
		b := token(t, m)
		o := options(m)
		if c.options != nil {
			c.options(&o)
		}
		if _, err := cca.VerifyToken(ctx, b, o); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: got %v, expected a refusal with %q", name, err, c.why)
		}
	}
	m := maker(t, func(m *ccatest.Maker) { m.Platform[2395] = 0x4000 })
	o := options(m)
	o.AllowUnsecured = true
	if _, err := cca.VerifyToken(ctx, token(t, m), o); err != nil {
		t.Errorf("unsecured, allowed: %v", err)
	}
	for _, raw := range []string{`{`, `{"token":"AAAA"}`, `{"token":[256]}`, `{"token":[]}`, `{}`, `"` + strings.Repeat("a",
		512<<10) + `"`} {
		if _, err := cca.Verify(ctx, json.RawMessage(raw), o); err == nil {
			t.Errorf("%.40s: accepted", raw)
		}
	}
}

// TestTampering flips a bit of every byte.
func TestTampering(t *testing.T) {
	m := maker(t, nil)
	good := token(t, m)
	if _, err := cca.VerifyToken(ctx, good, options(m)); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		if _, err := cca.VerifyToken(ctx, b, options(m)); err == nil {
			t.Errorf("bit flip in byte %d of %d accepted", i, len(good))
		}
	}
}

func TestStoreRefused(t *testing.T) {
	m := maker(t, nil)
	point, err := m.CPAK.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	id, inst := strings.Repeat("02", 32), "01"+strings.Repeat("03", 32)
	entry := func(id, inst, kty, crv, x, y string) string {
		return fmt.Sprintf(`{"implementation-id":%q,"instance-id":%q,"pkey":{"kty":%q,"crv":%q,"x":%q,"y":%q}}`, id, inst, kty, crv, x, y)
	}
	x, y := b64(point[1:33]), b64(point[33:])
	good := entry(id, inst, "EC", "P-256", x, y)
	store, err := cca.ParseStore([]byte("[" + good + "]"))
	if err != nil {
		t.Fatal(err)
	}
	o := options(m)
	o.TrustAnchors = store
	if _, err := cca.VerifyToken(ctx, token(t, m), o); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"not a list":     good,
		"twice":          "[" + good + "," + good + "]",
		"short id":       "[" + entry("02", inst, "EC", "P-256", x, y) + "]",
		"id not hex":     "[" + entry(strings.Repeat("zz", 32), inst, "EC", "P-256", x, y) + "]",
		"RSA":            "[" + entry(id, inst, "RSA", "P-256", x, y) + "]",
		"other curve":    "[" + entry(id, inst, "EC", "P-384", x, y) + "]",
		"unknown curve":  "[" + entry(id, inst, "EC", "P-192", x, y) + "]",
		"off the curve":  "[" + entry(id, inst, "EC", "P-256", y, x) + "]",
		"x not base64":   "[" + entry(id, inst, "EC", "P-256", "*", y) + "]",
		"x and y uneven": "[" + entry(id, inst, "EC", "P-256", x+"AAAA", y) + "]",
	} {
		if _, err := cca.ParseStore([]byte(text)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	if key, err := cca.ParseJWK([]byte(`{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"}`)); err != nil ||
		!key.Equal(&m.CPAK.PublicKey) {
		t.Errorf("JWK: %v", err)
	}
}

func TestReferenceValues(t *testing.T) {
	m := maker(t, nil)
	b := token(t, m)
	h := func(n int, v byte) string { return strings.Repeat(fmt.Sprintf("%02x", v), n) }
	platform := `{"implementation-id":"` + h(32, 2) + `","platform-configuration":"` + h(4,
		4) + `","sw-components":[{"measurement-value":"` +
		h(32, 5) + `","signer-id":"` + h(32, 6) + `","component-type":"RMM"}]}`
	realm := `{"initial-measurement":"` + h(32, 9) + `"}`
	for _, c := range []struct{ text, platform, realm string }{
		{`{"platform":[` + platform + `],"realm":[` + realm + `]}`, "match", "match"},
		{`{}`, "mismatch", "mismatch"},
		{`{"platform":[` + strings.Replace(platform, "RMM", "BL1", 1) + `],"realm":[{}]}`, "mismatch", "mismatch"},
		{`{"platform":[` + strings.Replace(platform, h(4, 4), h(4, 5), 1) + `],"realm":[{"initial-measurement":"` + h(32, 9) +
			`","personalization-value":"00"}]}`, "mismatch", "mismatch"},
	} {
		v, err := cca.ParseReferenceValues([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		o := options(m)
		o.ReferenceValues = v
		claims, err := cca.VerifyToken(ctx, b, o)
		if err != nil {
			t.Fatal(err)
		}
		p, r := claims["platform"].(map[string]any)["cca-platform-reference-values"],
			claims["realm"].(map[string]any)["cca-realm-reference-values"]
		if p != c.platform || r != c.realm {
			t.Errorf("%s: %v and %v, expected %s and %s", c.text, p, r, c.platform, c.realm)
		}
	}
	if _, err := cca.ParseReferenceValues([]byte(`{"realm":[{"initial-measurement":"xx"}]}`)); err == nil {
		t.Error("reference values that are not hex are read")
	}
}

// TestCurves signs with every curve a platform may have.
func TestCurves(t *testing.T) {
	for curve, alg := range map[elliptic.Curve]cose.Algorithm{elliptic.P256(): cose.AlgorithmES256,
		elliptic.P384(): cose.AlgorithmES384, elliptic.P521(): cose.AlgorithmES512} {
		m := maker(t, nil)
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		m.CPAK, m.CPAKAlg = key, alg
		if _, err := cca.VerifyToken(ctx, token(t, m), options(m)); err != nil {
			t.Errorf("%s: %v", curve.Params().Name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	m := maker(f, nil)
	f.Add([]byte(wrap(token(f, m))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		claims, err := cca.Verify(ctx, raw, options(m))
		if err == nil && claims == nil {
			t.Fatal("neither claims nor an error")
		}
	})
}
