package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/server"
)

// published is how many keys the broker publishes.
func (w *world) published() int {
	w.t.Helper()
	_, raw := w.guest().do("GET", "/.well-known/jwks.json", nil, nil)
	var set struct{ Keys []json.RawMessage }
	w.must(json.Unmarshal(raw, &set))
	return len(set.Keys)
}

// refresh is what the broker does from time to time.
func (w *world) refresh() {
	w.t.Helper()
	w.must(w.b.root.keys.refresh(w.t.Context(), w.b.root.signer))
}

func (g *guest) reads() int {
	g.cookie = nil
	status, _ := g.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}})
	return status
}

func keyOf(t *testing.T, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	return head
}

func TestSigningKeyRotation(t *testing.T) {
	w := newWorld(t, nil)
	before := w.guest().ready()
	status, answer := w.rootCall("POST", "/cloister/v1/keys/token/rotate", "")
	var done server.Rotated
	if err := json.Unmarshal(answer, &done); status != http.StatusOK || err != nil || !done.From.After(w.clock.now()) {
		t.Fatalf("rotating: %d %s", status, answer)
	}
	if n := w.published(); n != 2 {
		t.Errorf("%d keys are published, want the one of today and the one to come", n)
	}
	if g := w.guest().ready(); keyOf(t, g.token) != keyOf(t, before.token) {
		t.Error("the new key signs before others can know it")
	}
	w.clock.advance(done.From.Sub(w.clock.now()) - time.Minute)
	last := w.guest().ready()
	w.clock.advance(time.Minute)
	after := w.guest().ready()
	if keyOf(t, after.token) == keyOf(t, last.token) {
		t.Error("the new key does not sign")
	}
	if s := last.reads(); s != http.StatusOK {
		t.Errorf("a token of the earlier key: %d", s)
	}
	w.clock.advance(5 * time.Minute)
	w.refresh()
	if n := w.published(); n != 1 {
		t.Errorf("%d keys are published after the earlier one's last token has ended", n)
	}
	// A key that was stolen ends at once, and with it its tokens.
	g := w.guest().ready()
	if status, answer := w.rootCall("POST", "/cloister/v1/keys/token/rotate?revoke", ""); status != http.StatusOK {
		t.Fatalf("revoking: %d %s", status, answer)
	}
	if s := g.reads(); s != http.StatusUnauthorized {
		t.Errorf("a token of a revoked key: %d", s)
	}
	if s := w.guest().ready().reads(); s != http.StatusOK {
		t.Errorf("a token of the key after it: %d", s)
	}
}

// TestSigningKeyFile: the operator's key and certificates, replaced while the broker runs.
func TestSigningKeyFile(t *testing.T) {
	dir := t.TempDir()
	keyFile, certFile := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	write := func() {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, NotAfter: time.Now().Add(time.Hour)}
		cert, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{keyFile: {Type: "PRIVATE KEY", Bytes: der}, certFile: {Type: "CERTIFICATE", Bytes: cert}} {
			if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	w := newWorld(t, func(c *config.Config) {
		c.Attestation.SigningKey, c.Attestation.SigningCertificates = keyFile, certFile
	})
	first := w.guest().ready()
	_, set := first.do("GET", "/.well-known/jwks.json", nil, nil)
	if !strings.Contains(string(set), `"x5c":["MII`) {
		t.Errorf("the published key has no certificate: %s", set)
	}
	if status, answer := w.rootCall("POST", "/cloister/v1/keys/token/rotate", ""); status != http.StatusConflict || !strings.Contains(string(answer), "replace the file") {
		t.Errorf("rotating a key of a file: %d %s", status, answer)
	}
	write()
	w.refresh()
	second := w.guest().ready()
	if keyOf(t, first.token) == keyOf(t, second.token) || first.reads() != http.StatusOK || second.reads() != http.StatusOK {
		t.Error("after the file was replaced, tokens of both keys ought to count")
	}
	w.must(os.WriteFile(keyFile, []byte("no key"), 0o600))
	if err := w.b.root.keys.refresh(t.Context(), w.b.root.signer); err == nil || w.guest().ready().reads() != http.StatusOK {
		t.Errorf("a broken file: %v", err)
	}
}
