package pemkey

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKeys(t *testing.T) {
	der := must[[]byte](t)
	ec := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	rs := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1 := block("EC PRIVATE KEY", der(x509.MarshalECPrivateKey(ec)))
	public := block("PUBLIC KEY", der(x509.MarshalPKIXPublicKey(ec.Public())))
	for name, c := range map[string]struct {
		text []byte
		want crypto.Signer
	}{
		"PKCS 8 of ECDSA":      {block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(ec))), ec},
		"PKCS 8 of Ed25519":    {block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(ed))), ed},
		"SEC 1":                {sec1, ec},
		"PKCS 1":               {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs)), rs},
		"openssl ecparam":      {append(block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), sec1...), ec},
		"the public one first": {append(bytes.Clone(public), sec1...), ec},
	} {
		equal := c.want.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal
		if got, err := Private(c.text); err != nil || !equal(got.Public()) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := Public(c.text); err != nil || !equal(got) {
			t.Errorf("public key of %s: %v", name, err)
		}
	}
	if got, err := Public(public); err != nil || !ec.PublicKey.Equal(got) {
		t.Errorf("public key: %v", err)
	}
	agree := must[*ecdh.PrivateKey](t)(ecdh.X25519().GenerateKey(rand.Reader))
	for says, text := range map[string][]byte{
		"no private key in PEM":        []byte("x"),
		`no private key, but "PUBLIC`:  public,
		"is encrypted with a password": block("ENCRYPTED SIGSTORE PRIVATE KEY", []byte("x")),
		"encrypted with a password":    pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")}),
		"the key is damaged":           block("PRIVATE KEY", []byte("secret words")),
		"does not sign":                block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(agree))),
		"the limit is":                 make([]byte, maxText+1),
	} {
		_, err := Private(text)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("error %v, want one with %q", err, says)
		}
	}
}
