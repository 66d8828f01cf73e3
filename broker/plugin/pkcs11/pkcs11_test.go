package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/pkcs11"
	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/test/softhsm"
)

// admit lets an administrator or a guest in, and refuses the other one.
type admit struct{ admin, guest bool }

var errAccess = errors.New("not admitted")

func (a admit) Admin(context.Context, *plugin.Request) error {
	if !a.admin {
		return errAccess
	}
	return nil
}

func (a admit) Guest(context.Context, *plugin.Request) (map[string]any, error) {
	if !a.guest {
		return nil, errAccess
	}
	return nil, nil
}

func do(t *testing.T, p plugin.Plugin, who admit, method, path string, body []byte) (*plugin.Answer, error) {
	t.Helper()
	r, err := plugin.NewRequest(method, path, nil, body)
	if err != nil {
		t.Fatal(err)
	}
	return plugin.Do(t.Context(), p, r, who)
}

func config(t *testing.T, h *softhsm.HSM, helper string) Config {
	t.Helper()
	return Config{Config: pkcs11.Config{Module: softhsm.Module, TokenLabel: softhsm.Label, PINFile: h.PINFile, Helper: helper,
		Environment: []string{softhsm.Variable}}}
}

// imported puts a key that the test knows into the token.
func imported(t *testing.T, h *softhsm.HSM, label, id string) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Util(t, "--import", file, "--token", softhsm.Label, "--label", label, "--id", id, "--pin", softhsm.PIN)
	return key
}

func TestWithSoftHSM(t *testing.T) {
	h := softhsm.New(t)
	c := config(t, h, softhsm.Helper(t))
	key := imported(t, h, "wrapping", "a1")
	c.LookupLabel, c.RSAMechanism = "wrapping", pkcs11.RSAPKCSTest
	p, err := New(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	admin, guest := admit{admin: true}, admit{guest: true}

	// A secret: an administrator writes, a guest reads, the answer is encrypted.
	if _, err := do(t, p, guest, "POST", "resource/r/t/g", []byte("x")); !errors.Is(err, errAccess) {
		t.Errorf("a guest writes: %v", err)
	}
	if _, err := do(t, p, admin, "GET", "resource/r/t/g", nil); !errors.Is(err, errAccess) {
		t.Errorf("an administrator reads: %v", err)
	}
	if _, err := do(t, p, guest, "GET", "resource/r/t/g", nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a missing secret: %v", err)
	}
	for _, secret := range []string{"one", "two"} {
		if a, err := do(t, p, admin, "POST", "resource/r/t/g", []byte(secret)); err != nil || len(a.Body) > 0 || a.Encrypt {
			t.Fatalf("%+v, %v", a, err)
		}
		if a, err := do(t, p, guest, "GET", "resource/r/t/g", nil); err != nil || string(a.Body) != secret || !a.Encrypt {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	if _, err := do(t, p, admin, "DELETE", "resource/r/t/g", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := do(t, p, admin, "DELETE", "resource/r/t/g", nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := do(t, p, admin, "POST", "resource/r/t/g", nil); !errors.Is(err, plugin.ErrRequest) {
		t.Errorf("an empty secret: %v", err)
	}

	// A key, wrapped by the plugin and unwrapped by Go, and the other way round.
	a, err := do(t, p, admin, "POST", "wrap-key", []byte("the key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := rsa.DecryptOAEP(sha1.New(), nil, key, a.Body, nil); err != nil || string(got) != "the key" {
		t.Errorf("%q, %v", got, err)
	}
	sealed, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, &key.PublicKey, []byte("another key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = do(t, p, guest, "GET", "wrap-key", sealed); err != nil || string(a.Body) != "another key" || !a.Encrypt {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := do(t, p, guest, "POST", "wrap-key", []byte("x")); !errors.Is(err, errAccess) {
		t.Errorf("a guest wraps: %v", err)
	}

	// What does not decrypt is one error, whatever is wrong with it, and the helper lives on.
	other, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(sealed)
	flipped[100] ^= 1
	texts := map[string]bool{}
	for name, body := range map[string][]byte{"flipped": flipped, "short": sealed[1:],
		"long": append(bytes.Clone(sealed), 0), "zero": make([]byte, 256), "high": bytes.Repeat([]byte{0xff}, 256), "hash": other, "byte": {0}, "huge": make([]byte, 2048)} {
		_, err := do(t, p, guest, "GET", "wrap-key", body)
		if !errors.Is(err, plugin.ErrRequest) || link.StatusOf(err) != link.StatusBadCipher {
			t.Errorf("%s: %v", name, err)
		}
		texts[err.Error()] = true
	}
	if len(texts) != 1 {
		t.Errorf("the errors differ: %v", texts)
	}
	for _, body := range [][]byte{nil, make([]byte, link.MaxValue+2<<10)} {
		if _, err := do(t, p, guest, "GET", "wrap-key", body); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%d bytes: %v", len(body), err)
		}
	}
	if _, err := do(t, p, admin, "POST", "wrap-key", make([]byte, 215)); !errors.Is(err, plugin.ErrRequest) { // 256 - 2*20 - 2 is 214
		t.Errorf("a key that is too long: %v", err)
	}
}

func TestWrongKeys(t *testing.T) {
	h := softhsm.New(t)
	c := config(t, h, softhsm.Helper(t))
	imported(t, h, "wrapping", "a1")
	start := func(label, mechanism string) error {
		c.LookupLabel, c.RSAMechanism = label, mechanism
		p, err := New(t.Context(), c, nil)
		if err == nil {
			p.Close()
		}
		return err
	}
	for _, label := range []string{"wrappin", "Wrapping", "wrapping "} {
		if err := start(label, pkcs11.RSAPKCSTest); link.StatusOf(err) != link.StatusBadKey {
			t.Errorf("key %q: %v", label, err)
		}
	}
	// SoftHSM has no OAEP with SHA-256: that is found at the start.
	if err := start("wrapping", pkcs11.RSAPKCSOAEP); link.StatusOf(err) != link.StatusBadKey || !strings.Contains(err.Error(), "sha256") {
		t.Errorf("a mechanism that is not there: %v", err)
	}
	imported(t, h, "wrapping", "a2")
	if err := start("wrapping", pkcs11.RSAPKCSTest); link.StatusOf(err) != link.StatusDuplicate {
		t.Errorf("two keys with one label: %v", err)
	}
}

// memory is a token without keys.
type memory struct{ token }

func TestRequestsThatNobodyMayMake(t *testing.T) {
	p := &Plugin{token: memory{}, label: "l", hash: link.SHA256}
	for _, c := range []struct {
		method, path string
		want         error
	}{
		{"PUT", "resource/r/t/g", plugin.ErrRequest}, {"HEAD", "resource/r/t/g", plugin.ErrRequest}, {"get", "resource/r/t/g", plugin.ErrRequest},
		{"DELETE", "wrap-key", plugin.ErrRequest}, {"PUT", "wrap-key", plugin.ErrRequest}, {"GET", "wrap-key/x", plugin.ErrRequest},
		{"GET", "", plugin.ErrRequest}, {"GET", "resources/r/t/g", plugin.ErrRequest}, {"GET", "r/t/g", plugin.ErrRequest},
		{"GET", "resource", resource.ErrPath}, {"GET", "resource/r/t", resource.ErrPath}, {"GET", "resource/r/t/g/h", resource.ErrPath},
		{"POST", "resource/r/t/.g", resource.ErrPath}, {"DELETE", "resource/r/t/a b", resource.ErrPath},
	} {
		if a, err := do(t, p, admit{true, true}, c.method, c.path, []byte("x")); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %+v, %v", c.method, c.path, a, err)
		}
	}
	p.label = ""
	if _, err := do(t, p, admit{true, true}, http.MethodGet, "wrap-key", []byte("x")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no key is configured: %v", err)
	}
}

func TestConfig(t *testing.T) {
	c := Config{Config: pkcs11.Config{Module: "/m", TokenLabel: "l", PINFile: "/p"}}
	if err := c.Validate(); err != nil || len(c.Insecure()) > 0 {
		t.Error(err, c.Insecure())
	}
	c.RSAMechanism = pkcs11.RSAPKCSTest
	if got := c.Insecure(); len(got) != 1 || c.Validate() != nil {
		t.Error(got)
	}
	c.RSAMechanism, c.LookupLabel, c.Module = "RsaPkcs", strings.Repeat("x", link.MaxLabel+1), "m"
	for _, want := range []string{"rsa_mechanism", "lookup_label", "module"} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
