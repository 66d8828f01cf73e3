package kbs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"strings"
	"testing"
)

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func jwk(t testing.TB, pub crypto.PublicKey) JWK {
	t.Helper()
	k, err := NewJWK(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestJWKRoundTrip(t *testing.T) {
	type comparable interface{ Equal(crypto.PublicKey) bool }
	for name, tt := range map[string]struct {
		pub     comparable
		members string
	}{
		"P-256": {&ecKey(t, elliptic.P256()).PublicKey, "alg crv kty x y"},
		"P-521": {&ecKey(t, elliptic.P521()).PublicKey, "alg crv kty x y"},
		"RSA":   {&rsaKey(t, 2048).PublicKey, "alg e kty n"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := json.Marshal(jwk(t, tt.pub))
			if err != nil {
				t.Fatal(err)
			}
			var members map[string]string
			if err := json.Unmarshal(text, &members); err != nil {
				t.Fatal(err)
			}
			if len(members) != len(strings.Fields(tt.members)) {
				t.Errorf("members of %s, expected %s", text, tt.members)
			}
			for _, m := range strings.Fields(tt.members) {
				if members[m] == "" {
					t.Errorf("member %s is missing in %s", m, text)
				}
			}
			var back JWK
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			pub, err := back.PublicKey()
			if err != nil {
				t.Fatal(err)
			}
			if !tt.pub.Equal(pub) {
				t.Error("another key came back")
			}
		})
	}
}

func TestJWKRefuses(t *testing.T) {
	ec := jwk(t, &ecKey(t, elliptic.P256()).PublicKey)
	rs := jwk(t, &rsaKey(t, 2048).PublicKey)
	change := func(k JWK, f func(*JWK)) JWK { f(&k); return k }
	for name, k := range map[string]JWK{
		"empty":          {},
		"AKP":            {Kty: "AKP", Alg: "ML-KEM-768+A192KW"},
		"P-384":          change(ec, func(k *JWK) { k.Crv = "P-384" }),
		"wrong curve":    change(ec, func(k *JWK) { k.Crv = "P-521" }),
		"wrong alg":      change(ec, func(k *JWK) { k.Alg = "ECDH-ES" }),
		"EC with RSA":    change(ec, func(k *JWK) { k.Alg = AlgRSAOAEP }),
		"short x":        change(ec, func(k *JWK) { k.X = b64([]byte{1}) }),
		"long y":         change(ec, func(k *JWK) { k.Y += "AA" }),
		"padded":         change(ec, func(k *JWK) { k.X += "=" }),
		"line break":     change(ec, func(k *JWK) { k.X = k.X[:10] + "\n" + k.X[10:] }),
		"not on curve":   change(ec, func(k *JWK) { k.X = b64(make([]byte, 32)) }),
		"infinity":       change(ec, func(k *JWK) { k.X, k.Y = b64(make([]byte, 32)), b64(make([]byte, 32)) }),
		"RSA small":      change(rs, func(k *JWK) { k.N = b64([]byte(strings.Repeat("\x81", 128))) }),
		"RSA huge":       change(rs, func(k *JWK) { k.N = b64([]byte(strings.Repeat("\x81", 1025))) }),
		"RSA even":       change(rs, func(k *JWK) { k.N = b64([]byte(strings.Repeat("\x82", 256))) }),
		"RSA lead zero":  change(rs, func(k *JWK) { k.N = b64([]byte("\x00" + strings.Repeat("\x81", 256))) }),
		"exponent one":   change(rs, func(k *JWK) { k.E = b64([]byte{1}) }),
		"exponent even":  change(rs, func(k *JWK) { k.E = b64([]byte{4}) }),
		"exponent none":  change(rs, func(k *JWK) { k.E = "" }),
		"exponent zero":  change(rs, func(k *JWK) { k.E = b64([]byte{0, 3}) }),
		"exponent large": change(rs, func(k *JWK) { k.E = b64([]byte{0xff, 0xff, 0xff, 0xff}) }),
		"RSA with EC":    change(rs, func(k *JWK) { k.Alg = AlgECDHES }),
	} {
		if _, err := k.PublicKey(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, pub := range map[string]crypto.PublicKey{
		"P-384":     &ecKey(t, elliptic.P384()).PublicKey,
		"no key":    nil,
		"by value":  ecKey(t, elliptic.P256()).PublicKey,
		"RSA small": &rsa.PublicKey{N: rsaKey(t, 2048).N.Rsh(rsaKey(t, 2048).N, 1024), E: 65537},
	} {
		if _, err := NewJWK(pub); err == nil {
			t.Errorf("%s: described", name)
		}
	}
}

func FuzzJWK(f *testing.F) {
	for _, pub := range []crypto.PublicKey{&ecKey(f, elliptic.P256()).PublicKey, &ecKey(f, elliptic.P521()).PublicKey, &rsaKey(f, 2048).PublicKey} {
		text, err := json.Marshal(jwk(f, pub))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var k JWK
		if json.Unmarshal(text, &k) != nil {
			return
		}
		pub, err := k.PublicKey()
		if err != nil {
			return
		}
		back, err := NewJWK(pub)
		if err != nil {
			t.Fatalf("%s was read and cannot be written: %v", text, err)
		}
		if k.Kty == "EC" && (back.X != k.X || back.Y != k.Y || back.Crv != k.Crv) || k.Kty == "RSA" && (back.N != k.N || back.E != k.E) {
			t.Fatalf("%+v became %+v", k, back)
		}
	})
}
