package extract

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	hex256 = strings.Repeat("ab", 32)
	hex512 = strings.Repeat("cd", 64)
)

func provenance(predicate string, subjects string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","predicateType":"` + predicate + `","subject":` + subjects + `,"predicate":{"x":1}}`
}

const slsa = "https://slsa.dev/provenance/v1"

func good() string {
	return provenance(slsa, `[{"name":"guest.img","digest":{"sha512":"`+hex512+`","sha256":"`+strings.ToUpper(hex256)+`","gitCommit":"12"}},
		{"name":"sbom","digest":{"sha256":"`+strings.Repeat("01", 32)+`"}}]`)
}

func signDSSE(t testing.TB, key crypto.Signer, message []byte, pss bool) []byte {
	t.Helper()
	digest, opts := message, crypto.SignerOpts(crypto.Hash(0))
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		digest, opts = curveDigest(&k.PublicKey, message), crypto.SHA256 // the option only has to be a hash
	case *rsa.PrivateKey:
		sum := sha256.Sum256(message)
		digest, opts = sum[:], crypto.SHA256
		if pss {
			opts = &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
		}
	}
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		sig, err := ecdsa.SignASN1(rand.Reader, k, digest)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func dsse(t testing.TB, kind, body string, sigs ...[]byte) []byte {
	t.Helper()
	e := map[string]any{"payloadType": kind, "payload": base64.StdEncoding.EncodeToString([]byte(body))}
	list := []any{}
	for _, s := range sigs {
		list = append(list, map[string]any{"keyid": "any", "sig": base64.StdEncoding.EncodeToString(s)})
	}
	e["signatures"] = list
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func signed(t testing.TB, key crypto.Signer, body string) []byte {
	t.Helper()
	return dsse(t, payloadType, body, signDSSE(t, key, pae(payloadType, []byte(body)), false))
}

func TestInToto(t *testing.T) {
	keys := map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "P-521": ecKey(t, elliptic.P521()), "Ed25519": edKey(t),
		"RSA": rsaKey(t, 2048), "RSA-PSS": rsaKey(t, 2048),
	}
	for name, key := range keys {
		trust := load(t, Config{InToto: InToto{Keys: []string{file(t, publicPEM(t, edKey(t)), publicPEM(t, key))}}})
		sig := signDSSE(t, key, pae(payloadType, []byte(good())), name == "RSA-PSS")
		v, err := trust.Extract("in-toto", dsse(t, payloadType, good(), []byte("other"), sig), now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, want := string(v.Named["guest.img"]), `["`+hex256+`","`+hex512+`"]`; got != want || len(v.Named) != 2 {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		if !strings.HasPrefix(v.Signer, "sha256:") {
			t.Errorf("%s: signer is %q", name, v.Signer)
		}
		step := 1
		if name != "Ed25519" {
			step = 13 // the others take long
		}
		for i := 0; i < len(sig); i += step {
			bad := slices.Clone(sig)
			bad[i] ^= 1
			if _, err := trust.Extract("in-toto", dsse(t, payloadType, good(), bad), now); err == nil {
				t.Errorf("%s: byte %d of the signature changed: accepted", name, i)
			}
		}
		for i := 0; i < len(good()); i += step {
			bad := []byte(good())
			bad[i] ^= 1
			if _, err := trust.Extract("in-toto", dsse(t, payloadType, string(bad), sig), now); err == nil {
				t.Errorf("%s: byte %d of the statement changed: accepted", name, i)
			}
		}
	}
}

func TestInTotoNames(t *testing.T) {
	key := edKey(t)
	c := InToto{Keys: []string{file(t, publicPEM(t, key))}, Names: map[string]string{"guest.img": "rvps:///guest"}}
	v, err := load(t, Config{InToto: c}).Extract("in-toto", signed(t, key, good()), now)
	if err != nil || len(v.Named) != 1 || v.Named["rvps:///guest"] == nil {
		t.Errorf("got %+v, %v", v, err)
	}
	c.Names = map[string]string{"x": "y"}
	refused(t, load(t, Config{InToto: c}), "in-toto", signed(t, key, good()), "none of the statement's subjects")
	c.Names, c.Predicates = nil, []string{"https://example.com/built"}
	trust := load(t, Config{InToto: c})
	refused(t, trust, "in-toto", signed(t, key, good()), "predicate type")
	built := provenance("https://example.com/built", `[{"name":"a","digest":{"sha256":"`+hex256+`"}}]`)
	if _, err := trust.Extract("in-toto", signed(t, key, built), now); err != nil {
		t.Error(err)
	}
}

func TestInTotoRefused(t *testing.T) {
	key := edKey(t)
	trust := load(t, Config{InToto: InToto{Keys: []string{file(t, publicPEM(t, key))}}})
	sig := signDSSE(t, key, pae(payloadType, []byte(good())), false)
	refused(t, nil, "in-toto", signed(t, key, good()), "no key is configured")
	for name, c := range map[string]struct {
		doc  []byte
		want string
	}{
		"not JSON":           {[]byte("x"), "reading DSSE envelope"},
		"size":               {make([]byte, maxProvenance+1), "at most"},
		"no signature":       {dsse(t, payloadType, good()), "0 signatures"},
		"many signatures":    {dsse(t, payloadType, good(), make([][]byte, 17)...), "17 signatures"},
		"empty signature":    {dsse(t, payloadType, good(), nil), "it is empty"},
		"other key":          {signed(t, edKey(t), good()), "signed by none"},
		"over bare body":     {dsse(t, payloadType, good(), ed25519.Sign(key, []byte(good()))), "signed by none"},
		"other payload type": {dsse(t, "text/plain", good(), sig), "payload type"},
		"other statement":    {signed(t, key, strings.Replace(good(), "Statement/v1", "Link/v1", 1)), "statement has type"},
		"test that failed":   {signed(t, key, strings.Replace(good(), slsa, "https://in-toto.io/test-result/v1", 1)), "predicate type"},
		"no subject":         {signed(t, key, provenance(slsa, `[]`)), "0 subjects"},
		"no name":            {signed(t, key, provenance(slsa, `[{"digest":{"sha256":"`+hex256+`"}}]`)), "no name"},
		"weak digest":        {signed(t, key, provenance(slsa, `[{"name":"a","digest":{"sha1":"ab"}}]`)), "no digest of a known"},
		"short digest":       {signed(t, key, provenance(slsa, `[{"name":"a","digest":{"sha256":"ab"}}]`)), "want 32 bytes"},
		"statement":          {signed(t, key, `[]`), "reading in-toto statement"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, trust, "in-toto", c.doc, c.want) })
	}
	ca, ec := newAuthority(t, "root"), ecKey(t, elliptic.P256())
	pinned := load(t, Config{InToto: InToto{Keys: []string{file(t, certPEM(ca.issue(t, "builder", ec.Public(), nil)))}}})
	if v, err := pinned.Extract("in-toto", signed(t, ec, good()), now); err != nil || v.Signer != "CN=builder" {
		t.Errorf("certificate: %+v, %v", v, err)
	}
	_, err := pinned.Extract("in-toto", signed(t, ec, good()), now.Add(48*time.Hour))
	if err == nil || !strings.Contains(err.Error(), "valid from") {
		t.Errorf("expired certificate: %v", err)
	}
}

func FuzzInToto(f *testing.F) {
	key := edKey(f)
	trust := load(f, Config{InToto: InToto{Keys: []string{file(f, publicPEM(f, key))}}})
	f.Add(signed(f, key, good()), good())
	f.Fuzz(func(t *testing.T, doc []byte, body string) {
		if v, err := trust.Extract("in-toto", doc, now); err == nil && len(v.Named) != 2 {
			t.Fatalf("forged: %+v", v)
		}
		if v, err := trust.Extract("in-toto", signed(t, key, body), now); err == nil && len(v.Named) == 0 {
			t.Fatal("no values and no error")
		}
	})
}
