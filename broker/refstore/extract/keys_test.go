package extract

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func publicPEM(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// authority is a made-up root.
type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{key: ecKey(t, elliptic.P384())}
	a.cert = a.issue(t, name, a.key.Public(), func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	return a
}

// issue makes a certificate of a signer, good from a day before now to a day after, that change may make another.
func (a *authority) issue(t testing.TB, name string, public crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour),
		NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(c)
	}
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func file(t testing.TB, parts ...[]byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func load(t testing.TB, c Config) *Trust {
	t.Helper()
	trust, err := Load(c)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

func refused(t *testing.T, trust *Trust, kind string, payload []byte, want string) {
	t.Helper()
	if v, err := trust.Extract(kind, payload, now); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %+v, %v, want an error with %q", v, err, want)
	}
}

func TestLoad(t *testing.T) {
	ca, key := newAuthority(t, "root"), ecKey(t, elliptic.P256())
	leaf := ca.issue(t, "signer", key.Public(), nil)
	trust := load(t, Config{
		SWID:  SWID{Roots: []string{file(t, certPEM(ca.cert))}},
		CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, key), []byte("\n"), certPEM(leaf)), file(t, certPEM(ca.cert))}},
	})
	if len(trust.swidRoots.roots) != 1 || len(trust.corimAnchors.keys) != 2 || len(trust.corimAnchors.roots) != 1 ||
		!trust.inTotoKeys.empty() {
		t.Errorf("loaded %+v", trust)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	encipher := ca.issue(t, "server", key.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	for name, c := range map[string]struct {
		config Config
		want   []string
	}{
		"several": {Config{SWID: SWID{Roots: []string{"/nowhere/a"}}, InToto: InToto{Keys: []string{"/nowhere/b"}}},
			[]string{"swid.roots", "/nowhere/a", "in_toto.keys", "/nowhere/b"}},
		"key as root":  {Config{SWID: SWID{Roots: []string{file(t, publicPEM(t, key))}}}, []string{"swid.roots: sha256:"}},
		"root as key":  {Config{InToto: InToto{Keys: []string{file(t, certPEM(ca.cert))}}}, []string{`"CN=root" is an authority`}},
		"no anchor":    {Config{CoRIM: CoRIM{RequireSigned: true}}, []string{"corim.require_signed"}},
		"empty":        {Config{CoRIM: CoRIM{Anchors: []string{file(t)}}}, []string{"it is empty"}},
		"rest":         {Config{CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, key), []byte("x"))}}}, []string{"not PEM"}},
		"private key":  {Config{CoRIM: CoRIM{Anchors: []string{file(t, secret)}}}, []string{`has a "PRIVATE KEY"`}},
		"small key":    {Config{CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, rsaKey(t, 1024)))}}}, []string{"1024 bits"}},
		"curve":        {Config{CoRIM: CoRIM{Anchors: []string{file(t, publicPEM(t, ecKey(t, elliptic.P224())))}}}, []string{"P-224"}},
		"no signer":    {Config{CoRIM: CoRIM{Anchors: []string{file(t, certPEM(encipher))}}}, []string{"key usage"}},
		"size":         {Config{CoRIM: CoRIM{Anchors: []string{file(t, make([]byte, maxAnchorFile+1))}}}, []string{"at most"}},
		"not a folder": {Config{CoRIM: CoRIM{Anchors: []string{filepath.Dir(file(t))}}}, []string{"corim.anchors"}},
	} {
		_, err := Load(c.config)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want an error with %q", name, err, want)
			}
		}
	}
}

func TestSample(t *testing.T) {
	v, err := (*Trust)(nil).Extract("sample", []byte(` {"a":[1],"b":{"c":null}} `), now)
	if err != nil || len(v.Named) != 2 || string(v.Named["a"]) != "[1]" || v.Signer != Unsigned || !v.NotAfter.IsZero() {
		t.Errorf("got %+v, %v", v, err)
	}
	for payload, want := range map[string]string{
		`{}`: "names no value", `[1]`: "not a JSON object", ``: "not a JSON object", `{"a":1,"a":2}`: `"a" twice`, `{"a":1}{}`: "more than",
		`{"a":1,}`: "not a JSON object", `{"a":}`: "not a JSON object", `{"a":1`: "not a JSON object", "{\"a\":\"\xff\"}": "not a JSON object",
		`null`: "not a JSON object",
	} {
		refused(t, nil, "sample", []byte(payload), want)
	}
	refused(t, nil, "sample", make([]byte, MaxPayload+1), "at most")
	refused(t, nil, "Sample", []byte(`{"a":1}`), `type "Sample", known: corim, in-toto, sample, swid`)
}

func FuzzSample(f *testing.F) {
	f.Add([]byte(`{"a":[1],"b":{"c":null}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if v, err := (*Trust)(nil).Extract("sample", payload, now); err == nil && len(v.Named) == 0 {
			t.Fatal("no values and no error")
		}
	})
}
