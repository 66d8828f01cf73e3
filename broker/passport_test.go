package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/wire/kbs"
)

// TestPassport: a guest attests at one broker and gets its secret from another, which trusts the first one's key set.
func TestPassport(t *testing.T) {
	first := newWorld(t, nil)
	g := first.guest().ready()
	set := filepath.Join(t.TempDir(), "first.jwks")
	resp, err := http.Get(first.url + "/.well-known/jwks.json")
	first.must(err)
	defer resp.Body.Close()
	var keys json.RawMessage
	first.must(json.NewDecoder(resp.Body).Decode(&keys))
	first.must(os.WriteFile(set, keys, 0o600))

	second := newWorld(t, func(c *config.Config) { c.TrustedTokens.JWKSets = []string{set} })
	h := second.guest()
	status, jwe := h.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}})
	if status != http.StatusOK {
		t.Fatalf("resource: %d %s", status, jwe)
	}
	plain, err := kbs.Decrypt(jwe, g.key)
	second.must(err)
	if string(plain) != secretText {
		t.Errorf("got %q", plain)
	}
	// A third one trusts nobody else.
	third := newWorld(t, nil)
	status, answer := third.guest().do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}})
	if name, text := third.detail(answer); status != http.StatusUnauthorized || name != "TokenVerifierError" || !strings.Contains(text, "not signed by this broker") {
		t.Errorf("a token of a stranger: %d %s %s", status, name, text)
	}
}

// TestTrustedCertificatesAreReadAgain: tokens with certificates count once the authority's file says so; what cannot be read changes nothing
// and shows in the status.
func TestTrustedCertificatesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	authority := func(name string) (key, cert []byte) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	key, cert := authority("first")
	_, stranger := authority("stranger")
	keyFile, certFile, roots := filepath.Join(dir, "k"), filepath.Join(dir, "c"), filepath.Join(dir, "roots")
	first := newWorld(t, func(c *config.Config) {
		err := errors.Join(os.WriteFile(keyFile, key, 0o600), os.WriteFile(certFile, cert, 0o600), os.WriteFile(roots, stranger, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		c.Attestation.SigningKey, c.Attestation.SigningCertificates = keyFile, certFile
	})
	g := first.guest().ready()
	second := newWorld(t, func(c *config.Config) { c.TrustedTokens.Certificates = []string{roots} })
	h := second.guest()
	ask := func(want int) {
		t.Helper()
		if got, answer := h.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}}); got != want {
			t.Errorf("%d %s, want %d", got, answer, want)
		}
	}
	ask(http.StatusUnauthorized)
	second.must(os.WriteFile(roots, cert, 0o600))
	second.must(second.b.reloads.Check(t.Context()))
	ask(http.StatusOK)
	second.must(os.WriteFile(roots, []byte("noise"), 0o600))
	if err := second.b.reloads.Check(t.Context()); err == nil {
		t.Error("noise is taken for certificates")
	}
	ask(http.StatusOK)
	st, err := second.admin.Status(t.Context())
	second.must(err)
	if len(st.Reloads) != 1 || st.Reloads[0].What != "trusted-token-certificates" || st.Reloads[0].Error == "" {
		t.Errorf("status of reloads: %+v", st.Reloads)
	}
	second.must(os.WriteFile(roots, stranger, 0o600))
	second.must(second.b.reloads.Check(t.Context()))
	ask(http.StatusUnauthorized)
}

// TestAdminModes: who may administrate follows the configuration.
func TestAdminModes(t *testing.T) {
	denied := newWorld(t, func(c *config.Config) { c.Admin.Mode = config.AdminDenyAll })
	if status, answer := denied.guest().do("GET", "/cloister/v1/status", nil, http.Header{"Authorization": {"Bearer x"}}); status != http.StatusUnauthorized {
		t.Errorf("deny-all: %d %s", status, answer)
	}
	open := newWorld(t, func(c *config.Config) { c.Admin.Mode = config.AdminInsecureAllowAll })
	if status, answer := open.guest().do("GET", "/cloister/v1/status", nil, nil); status != http.StatusOK || !strings.Contains(string(answer), "insecure-allow-all") {
		t.Errorf("insecure-allow-all: %d %s, want a status that shows the switch", status, answer)
	}
}

// TestRateLimit: one address is held back, and probes are not.
func TestRateLimit(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits = config.Limits{RequestsPerSecond: 1, Burst: 20} })
	g := w.guest()
	held := 0
	for range 40 {
		if status, _ := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status == http.StatusTooManyRequests {
			held++
		}
	}
	if held < 20 {
		t.Errorf("%d of 40 requests are held back, want at least 20", held)
	}
	if status, _ := g.do("GET", "/healthz", nil, nil); status != http.StatusOK {
		t.Errorf("the health probe is answered with %d", status)
	}
}
