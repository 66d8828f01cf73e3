// Package sealedsecret has the guest open what the author sealed.
package sealedsecret

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"io/fs"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/sealedsecret"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/hub"
	"github.com/cloister/cloister/wire/kbs"
)

// broker has resources by URI.
type broker map[string]string

func (b broker) Resource(_ context.Context, uri kbs.ResourceURI) ([]byte, error) {
	if v, ok := b[uri.String()]; ok {
		return []byte(v), nil
	}
	return nil, fs.ErrNotExist
}

func TestGuestOpens(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := sealedsecret.JWK(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const signer, secret = "kbs:///default/sealed/signer", "kbs:///default/db/password"
	text, err := sealedsecret.Seal(key, signer, secret)
	if err != nil {
		t.Fatal(err)
	}
	open := func(b broker, text string) (string, error) {
		cfg, err := hub.ParseConfig("", "")
		if err != nil {
			t.Fatal(err)
		}
		h, err := hub.New(cfg, hub.Options{Broker: b, Agent: new(attest.Agent)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.UnsealSecret(t.Context(), []byte(text))
		return string(got), err
	}
	if got, err := open(broker{signer: string(jwk), secret: "pa55"}, text+"\n"); err != nil || got != "pa55" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := open(broker{signer: string(jwk), secret: "pa55"}, text[:len(text)-4]+"AAAA"); err == nil || !strings.Contains(err.Error(), "signature") {
		t.Errorf("another signature: got %q, %v", got, err)
	}
	if got, err := open(broker{secret: "pa55"}, text); err == nil || !strings.Contains(err.Error(), "signer's key") {
		t.Errorf("without the signer's key: got %q, %v", got, err)
	}
}
