package kbs

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

type keyPair struct {
	name string
	alg  jose.KeyAlgorithm
	priv crypto.PrivateKey
	pub  crypto.PublicKey
}

func keyPairs(t testing.TB) []keyPair {
	p256, p521, rs := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P521()), rsaKey(t, 2048)
	return []keyPair{
		{"P-256", jose.ECDH_ES_A256KW, p256, &p256.PublicKey},
		{"P-521", jose.ECDH_ES_A256KW, p521, &p521.PublicKey},
		{"RSA", jose.RSA_OAEP_256, rs, &rs.PublicKey},
	}
}

var plaintexts = [][]byte{nil, []byte("s"), []byte("a secret of some length"), bytes.Repeat([]byte{7}, 100_000)}

func TestJWERoundTrip(t *testing.T) {
	for _, k := range keyPairs(t) {
		for _, want := range plaintexts {
			jwe, err := Encrypt(want, jwk(t, k.pub), false)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			got, err := Decrypt(jwe, k.priv)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes came back as %d", k.name, len(want), len(got))
			}
		}
	}
}

// TestJWEHeader: the guest's usual client serialises the header again before it
// authenticates it, so the order of members is part of the protocol.
func TestJWEHeader(t *testing.T) {
	keys := keyPairs(t)
	header := func(k JWK, allow bool) string {
		t.Helper()
		jwe, err := Encrypt([]byte("x"), k, allow)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]string
		if err := json.Unmarshal(jwe, &m); err != nil {
			t.Fatal(err)
		}
		if len(m) != 5 {
			t.Errorf("%d members in %s, expected 5", len(m), jwe)
		}
		return m["protected"]
	}
	if got := header(jwk(t, keys[2].pub), false); got != "eyJhbGciOiJSU0EtT0FFUC0yNTYiLCJlbmMiOiJBMjU2R0NNIn0" {
		t.Errorf("RSA header is %s", got)
	}
	rsa15 := jwk(t, keys[2].pub)
	rsa15.Alg = AlgRSA15
	if text, _ := base64.RawURLEncoding.DecodeString(header(rsa15, true)); string(text) != `{"alg":"RSA1_5","enc":"A256GCM"}` {
		t.Errorf("RSA1_5 header is %s", text)
	}
	text, err := base64.RawURLEncoding.DecodeString(header(jwk(t, keys[0].pub), false))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"`) {
		t.Errorf("EC header is %s", text)
	}
	if at := []int{strings.Index(string(text), `","x":"`), strings.Index(string(text), `","y":"`)}; at[0] < 0 || at[1] < at[0] {
		t.Errorf("EC header is %s", text)
	}
}

func TestGoJoseDecryptsOurs(t *testing.T) {
	for _, k := range keyPairs(t) {
		for _, want := range plaintexts {
			text, err := Encrypt(want, jwk(t, k.pub), false)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			obj, err := jose.ParseEncryptedJSON(string(text), []jose.KeyAlgorithm{k.alg}, []jose.ContentEncryption{jose.A256GCM})
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			got, err := obj.Decrypt(k.priv)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes came back as %d", k.name, len(want), len(got))
			}
		}
	}
}

func TestGoJoseDecryptsOurRSA15(t *testing.T) {
	priv := rsaKey(t, 2048)
	key := jwk(t, &priv.PublicKey)
	key.Alg = AlgRSA15
	if _, err := Encrypt([]byte("x"), key, false); err == nil {
		t.Error("RSA1_5 was used although it is not allowed")
	}
	text, err := Encrypt([]byte("old"), key, true)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := jose.ParseEncryptedJSON(string(text), []jose.KeyAlgorithm{jose.RSA1_5}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := obj.Decrypt(priv); err != nil || string(got) != "old" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := Decrypt(text, priv); err == nil {
		t.Error("Decrypt accepted RSA1_5")
	}
}

func TestWeDecryptGoJose(t *testing.T) {
	for _, k := range keyPairs(t) {
		for _, want := range plaintexts {
			enc, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: k.alg, Key: k.pub}, nil)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			obj, err := enc.Encrypt(want)
			if err != nil {
				t.Fatalf("%s: %v", k.name, err)
			}
			got, err := Decrypt([]byte(obj.FullSerialize()), k.priv)
			if err != nil {
				t.Fatalf("%s: %v: %s", k.name, err, obj.FullSerialize())
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes came back as %d", k.name, len(want), len(got))
			}
		}
	}
}

func TestDecryptRefuses(t *testing.T) {
	priv, other, p521, rs := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P521()), rsaKey(t, 2048)
	jwe, err := Encrypt([]byte("secret"), jwk(t, &priv.PublicKey), false)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PrivateKey{"other key": other, "other curve": p521, "RSA key": rs, "no key": nil} {
		if _, err := Decrypt(jwe, key); err == nil {
			t.Errorf("%s: decrypted", name)
		}
	}
	rsJWE, err := Encrypt([]byte("secret"), jwk(t, &rs.PublicKey), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decrypt(rsJWE, rsaKey(t, 2048)); err == nil {
		t.Error("other RSA key: decrypted")
	}

	with := func(f func(m map[string]string)) []byte {
		var m map[string]string
		if err := json.Unmarshal(jwe, &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		out, _ := json.Marshal(m)
		return out
	}
	header := func(f func(h map[string]any)) []byte {
		return with(func(m map[string]string) {
			var h map[string]any
			text, _ := base64.RawURLEncoding.DecodeString(m["protected"])
			if err := json.Unmarshal(text, &h); err != nil {
				t.Fatal(err)
			}
			f(h)
			text, _ = json.Marshal(h)
			m["protected"] = b64(text)
		})
	}
	flip := func(name string) []byte {
		return with(func(m map[string]string) {
			raw, _ := base64.RawURLEncoding.DecodeString(m[name])
			raw[len(raw)/2] ^= 1
			m[name] = b64(raw)
		})
	}
	for name, bad := range map[string][]byte{
		"no JSON":          []byte("eyJ..a.b"),
		"empty":            []byte("{}"),
		"ciphertext":       flip("ciphertext"),
		"tag":              flip("tag"),
		"iv":               flip("iv"),
		"encrypted_key":    flip("encrypted_key"),
		"short tag":        with(func(m map[string]string) { m["tag"] = b64(make([]byte, 12)) }),
		"long iv":          with(func(m map[string]string) { m["iv"] = b64(make([]byte, 16)) }),
		"short key":        with(func(m map[string]string) { m["encrypted_key"] = b64(make([]byte, 8)) }),
		"no key":           with(func(m map[string]string) { m["encrypted_key"] = "" }),
		"header rewritten": header(func(h map[string]any) { h["kid"] = "x" }),
		"enc":              header(func(h map[string]any) { h["enc"] = "A128GCM" }),
		"alg":              header(func(h map[string]any) { h["alg"] = AlgRSAOAEP }),
		"alg dir":          header(func(h map[string]any) { h["alg"] = "dir" }),
		"crit":             header(func(h map[string]any) { h["crit"] = []string{"x"} }),
		"zip":              header(func(h map[string]any) { h["zip"] = "DEF" }),
		"no epk":           header(func(h map[string]any) { delete(h, "epk") }),
		"epk off curve":    header(func(h map[string]any) { h["epk"].(map[string]any)["x"] = b64(make([]byte, 32)) }),
		"epk curve":        header(func(h map[string]any) { h["epk"].(map[string]any)["crv"] = "P-521" }),
		"header huge":      with(func(m map[string]string) { m["protected"] = strings.Repeat("A", 20_000) }),
	} {
		if got, err := Decrypt(bad, priv); err == nil {
			t.Errorf("%s: decrypted to %q", name, got)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error tells the secret: %v", name, err)
		}
	}
	if _, err := Encrypt(nil, JWK{Kty: "EC", Alg: AlgECDHES, Crv: "P-384"}, false); err == nil {
		t.Error("encrypted to P-384")
	}
}

func FuzzDecrypt(f *testing.F) {
	keys := keyPairs(f)
	for _, k := range keys {
		jwe, err := Encrypt([]byte("seed"), jwk(f, k.pub), false)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(jwe)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, k := range keys {
			// Only what was encrypted to the key may come out; the keys are new in
			// every run, so that is the seed alone.
			if got, err := Decrypt(text, k.priv); err == nil && string(got) != "seed" {
				t.Fatalf("%s decrypted to %q", text, got)
			}
		}
	})
}

func BenchmarkEncrypt(b *testing.B) {
	key := jwk(b, &ecKey(b, elliptic.P256()).PublicKey)
	for b.Loop() {
		if _, err := Encrypt([]byte("a typical secret of thirty-two b"), key, false); err != nil {
			b.Fatal(err)
		}
	}
}
