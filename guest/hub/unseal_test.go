package hub

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// seal signs a payload; header members are added to the usual ones.
func seal(t testing.TB, payload string, header map[string]any) (sealed, jwk string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	head := map[string]any{"alg": "ES256", "kid": "kbs:///default/signer/1"}
	for k, v := range header {
		head[k] = v
	}
	h, err := json.Marshal(head)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64(h) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := json.Marshal(map[string]string{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:])})
	if err != nil {
		t.Fatal(err)
	}
	return "sealed." + input + "." + b64(sig), string(pub)
}

const goodPayload = `{"version":"0.1.0","type":"vault","name":"kbs:///default/db/password","provider":"KBS","provider_settings":{},"annotations":{}}`

func TestUnsealRefuses(t *testing.T) {
	good, jwk := seal(t, goodPayload, nil)
	parts := strings.Split(good, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	try := func(sealed, signer string) ([]byte, error) {
		h, _ := newHub(t, setup{broker: broker{"kbs:///default/db/password": "pa55", "kbs:///default/signer/1": signer}})
		return h.UnsealSecret(t.Context(), []byte(sealed))
	}
	if b, err := try(good, jwk); err != nil || string(b) != "pa55" {
		t.Fatalf("good secret: %q, %v", b, err)
	}
	_, otherKey := seal(t, goodPayload, nil)
	signed := func(payload string, header map[string]any) [2]string {
		s, k := seal(t, payload, header)
		return [2]string{s, k}
	}
	replace := func(old, with string) [2]string { return signed(strings.Replace(goodPayload, old, with, 1), nil) }
	for name, c := range map[string][2]string{
		"other payload":     {"sealed." + parts[1] + "." + b64([]byte(strings.Replace(goodPayload, "db", "xx", 1))) + "." + parts[3], jwk},
		"other key":         {good, otherKey},
		"no key":            {good, ""},
		"RSA key":           {good, `{"kty":"RSA","n":"AA","e":"AQAB"}`},
		"point":             {good, `{"kty":"EC","crv":"P-256","x":"` + b64(make([]byte, 32)) + `","y":"` + b64(make([]byte, 32)) + `"}`},
		"fake signature":    {"sealed.fakejwsheader." + parts[2] + ".fakesignature", jwk},
		"no signature":      {"sealed." + parts[1] + "." + parts[2] + ".", jwk},
		"three parts":       {strings.Join(parts[:3], "."), jwk},
		"five parts":        {good + ".x", jwk},
		"prefix":            {"Sealed" + good[6:], jwk},
		"alg none":          signed(goodPayload, map[string]any{"alg": "none"}),
		"alg ES384":         signed(goodPayload, map[string]any{"alg": "ES384"}),
		"no kid":            signed(goodPayload, map[string]any{"kid": ""}),
		"kid is a file":     signed(goodPayload, map[string]any{"kid": "../../etc/passwd"}),
		"critical":          signed(goodPayload, map[string]any{"crit": []string{"x"}}),
		"version":           replace("0.1.0", "0.2.0"),
		"envelope":          replace("vault", "envelope"),
		"provider":          replace("KBS", "aws"),
		"no annotations":    replace(`,"annotations":{}`, ""),
		"name is no URI":    replace("kbs:///default/db/password", "password"),
		"payload is a list": signed(`[]`, nil),
		"oversized":         {"sealed." + strings.Repeat("A", 2<<20), jwk},
		"empty":             {"", jwk},
	} {
		if b, err := try(c[0], c[1]); err == nil {
			t.Errorf("%s: opened as %q", name, b)
		}
	}
}

func TestUnsealWithoutVerification(t *testing.T) {
	h, _ := newHub(t, setup{cdh: "skip_sealed_secret_verification = true", broker: broker{"kbs:///default/db/password": "pa55"}})
	sealed := "sealed.fakejwsheader." + base64.RawURLEncoding.EncodeToString([]byte(goodPayload)) + ".fakesignature"
	if b, err := h.UnsealSecret(t.Context(), []byte(sealed)); err != nil || string(b) != "pa55" {
		t.Errorf("%q, %v", b, err)
	}
}

func FuzzUnseal(f *testing.F) {
	good, jwk := seal(f, goodPayload, nil)
	f.Add(good)
	f.Add("sealed.e30.e30.e30")
	cfg := new(Config)
	h := &Hub{Resources: Resources{broker{"kbs:///default/signer/1": jwk, "kbs:///default/db/password": "x"}}, cfg: *cfg}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := h.UnsealSecret(t.Context(), []byte(s)); err == nil && strings.TrimSpace(s) != good {
			t.Errorf("opened %q", s)
		}
	})
}
