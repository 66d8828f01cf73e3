package sealedsecret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
)

func TestRefuses(t *testing.T) {
	small, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const good = "kbs:///default/db/password"
	if _, err := Seal(big, good, good); !errors.Is(err, ErrCurve) {
		t.Errorf("P-384: %v", err)
	}
	if _, err := JWK(&big.PublicKey); !errors.Is(err, ErrCurve) {
		t.Errorf("P-384: %v", err)
	}
	for _, uri := range []string{"", "default/db/password", "kbs:///default/db", "kbs:///default/db/a/b", "kbs:///default//a", "kbs:///../db/a", "kbs:///default/db/a b", "kbs:///default/db/a?version=1", "kbs://host/default/db/a"} {
		if _, err := Seal(small, good, uri); err == nil {
			t.Errorf("secret %q is accepted", uri)
		}
		if _, err := Seal(small, uri, good); err == nil {
			t.Errorf("signer %q is accepted", uri)
		}
	}
}
