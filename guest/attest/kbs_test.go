package attest_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/wire/kbs"
)

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// noEvidence is an attester for tests of what does not depend on evidence.
type noEvidence struct {
	mu    sync.Mutex
	calls int
}

func (*noEvidence) TEE() string { return "tpm" }

func (n *noEvidence) Evidence(context.Context, []byte) (json.RawMessage, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls++
	return json.RawMessage(`{}`), nil
}

// lenient makes a broker take any evidence.
func lenient(k *fakeKBS) {
	k.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/kbs/v0/attest" {
			return false
		}
		var a kbs.Attestation
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			k.t.Error(err)
		}
		token := "e30." + rawURL(`{"exp":`+itoa(time.Now().Add(k.lifetime).Unix())+`,"n":`+itoa(int64(k.auths))+`}`) + ".sig"
		k.tokens[token] = a.RuntimeData.TEEPubKey
		_ = json.NewEncoder(w).Encode(kbs.TokenResponse{Token: token})
		return true
	}
}

func TestHandshakeWithTPM(t *testing.T) {
	a, fake := newTPM(t)
	ctx := testContext(t)
	roots := x509.NewCertPool()
	roots.AddCert(fake.Root)
	for _, c := range []struct {
		name, keyAlg, hash string
		roots              *x509.CertPool
	}{
		{"default", "", "", roots},
		{"P-521, sha512", attest.KeyP521, "sha512", roots},
		{"RSA, sha256", attest.KeyRSA, "SHA256", roots},
		{"broker without the extension", attest.KeyP256, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newFakeKBS(t, true)
			k.roots, k.hash = c.roots, strings.ToLower(c.hash)
			k.resources["/kbs/v0/resource/default/key/1"] = "the secret"
			k.resources["/kbs/v0/plug/x?y=z"] = ""
			client := must(attest.NewKBSClient(attest.KBSConfig{URL: k.URL + "/", RootPEM: k.rootPEM(), KeyAlg: c.keyAlg, InitData: "a = 1\n"}, a))(t)
			b, err := client.Resource(ctx, must(kbs.ParseResourceURI("kbs:///default/key/1"))(t))
			if err != nil || string(b) != "the secret" {
				t.Fatalf("got %q, %v", b, err)
			}
			if b, err = client.Resource(ctx, must(kbs.ParseResourceURI("kbs+plug:///x?y=z"))(t)); err != nil || len(b) != 0 {
				t.Errorf("plugin: got %q, %v", b, err)
			}
			if k.auths != 1 {
				t.Errorf("%d handshakes for two resources, expected 1", k.auths)
			}
			if k.initData != "toml:a = 1\n" {
				t.Errorf("init-data was %q", k.initData)
			}
			_, err = client.Resource(ctx, must(kbs.ParseResourceURI("kbs:///default/key/2"))(t))
			if !errors.Is(err, attest.ErrNotFound) || k.auths != 1 {
				t.Errorf("missing resource: %v after %d handshakes", err, k.auths)
			}
		})
	}
}

func newLenient(t *testing.T, change func(*attest.KBSConfig)) (*fakeKBS, *attest.KBSClient, *noEvidence) {
	k := newFakeKBS(t, false)
	lenient(k)
	k.resources["/kbs/v0/resource/a/b/c"] = "v"
	cfg := attest.KBSConfig{URL: k.URL}
	if change != nil {
		change(&cfg)
	}
	a := new(noEvidence)
	return k, must(attest.NewKBSClient(cfg, a))(t), a
}

var abc = kbs.ResourceURI{Plugin: "resource", Path: "a/b/c"}

func TestSingleFlight(t *testing.T) {
	k, client, a := newLenient(t, nil)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if b, err := client.Resource(ctx, abc); err != nil || string(b) != "v" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if k.auths != 1 || a.calls != 1 {
		t.Errorf("%d handshakes and %d quotes for concurrent requests, expected 1", k.auths, a.calls)
	}
}

func TestTokenExpires(t *testing.T) {
	now := time.Now()
	k, client, _ := newLenient(t, func(c *attest.KBSConfig) { c.Now = func() time.Time { return now } })
	k.lifetime = 5 * time.Minute
	ctx := testContext(t)
	for _, step := range []struct {
		after time.Duration
		auths int
	}{{0, 1}, {4 * time.Minute, 1}, {35 * time.Second, 2}, {time.Second, 3}} {
		// The broker's clock does not move, so the second token is as old as the first.
		now = now.Add(step.after)
		if _, err := client.Resource(ctx, abc); err != nil {
			t.Fatal(err)
		}
		if k.auths != step.auths {
			t.Errorf("after %v more: %d handshakes, expected %d", step.after, k.auths, step.auths)
		}
	}
}

func TestRefusedTokenIsRenewedOnce(t *testing.T) {
	k, client, _ := newLenient(t, nil)
	ctx := testContext(t)
	if _, err := client.Resource(ctx, abc); err != nil {
		t.Fatal(err)
	}
	clear(k.tokens) // as after a restart of the broker
	if _, err := client.Resource(ctx, abc); err != nil {
		t.Errorf("after the broker forgot the token: %v", err)
	}
	if k.auths != 2 {
		t.Errorf("%d handshakes, expected 2", k.auths)
	}

	k.deny = `resource a/b/c refused: tpm.pcr09 = 3f9a is not one of the 2 registered values of "tpm_pcr09" (policy default_cpu, request 7c1f)`
	_, err := client.Resource(ctx, abc)
	var info *kbs.ErrorInformation
	if !errors.As(err, &info) || info.Name() != kbs.ErrorPolicyDeny || !strings.Contains(err.Error(), k.deny) {
		t.Errorf("denial is reported as %v", err)
	}
	if k.auths != 3 {
		t.Errorf("%d handshakes, expected one more", k.auths)
	}

	// Fresh evidence that is refused is not offered again.
	k2, client2, _ := newLenient(t, nil)
	k2.deny = "no"
	if _, err := client2.Resource(ctx, abc); err == nil || k2.auths != 1 || k2.fetches != 1 {
		t.Errorf("%v after %d handshakes and %d requests, expected 1 and 1", err, k2.auths, k2.fetches)
	}
}

func TestConnectionErrorsAreRetried(t *testing.T) {
	k, client, _ := newLenient(t, nil)
	inner, failures := k.hook, 2
	k.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if failures > 0 {
			failures--
			panic(http.ErrAbortHandler) // closes the connection
		}
		return inner(w, r)
	}
	if _, err := client.Resource(testContext(t), abc); err != nil {
		t.Errorf("after two dropped connections: %v", err)
	}
	failures = 1 << 30
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := client.Resource(ctx, abc); err == nil {
		t.Error("a dead broker answered")
	}
}

func TestHostileBroker(t *testing.T) {
	ctx := testContext(t)
	challenge := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { _, _ = w.Write([]byte(body)); return true }
	}
	attested := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/kbs/v0/attest" {
				return false
			}
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	for name, hook := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"no JSON":             challenge("hello"),
		"no nonce":            challenge(`{"nonce":"","extra-params":""}`),
		"long nonce":          challenge(`{"nonce":"` + strings.Repeat("x", 5000) + `","extra-params":""}`),
		"unknown hash":        challenge(`{"nonce":"n","extra-params":{"selected-hash-algorithm":"md5"}}`),
		"hash is a number":    challenge(`{"nonce":"n","extra-params":{"selected-hash-algorithm":5}}`),
		"unasked credential":  challenge(`{"nonce":"n","extra-params":{"cloister.tpm":{"credential_blob":"AA==","encrypted_secret":"AA=="}}}`),
		"oversized challenge": challenge(`{"nonce":"n","x":"` + strings.Repeat("x", 1<<20) + `"}`),
		"token is text":       attested("hello"),
		"token has one part":  attested(`{"token":"abc"}`),
		"token payload":       attested(`{"token":"a.!.b"}`),
		"token exp":           attested(`{"token":"a.` + rawURL(`{"exp":1e300}`) + `.b"}`),
		"refusal in HTML": func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "<html>", http.StatusBadGateway)
			return true
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
			return true
		},
		"resource is no JWE": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				_, _ = w.Write([]byte(`{"protected":"x"}`))
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			k, client, _ := newLenient(t, nil)
			inner := k.hook
			k.hook = func(w http.ResponseWriter, r *http.Request) bool { return hook(w, r) || inner(w, r) }
			if b, err := client.Resource(ctx, abc); err == nil {
				t.Errorf("got %q", b)
			}
		})
	}
}

func TestTLSIsPinned(t *testing.T) {
	k := newFakeKBS(t, true)
	lenient(k)
	k.resources["/kbs/v0/resource/a/b/c"] = "v"
	ctx := testContext(t)
	good := must(attest.NewKBSClient(attest.KBSConfig{URL: k.URL, RootPEM: k.rootPEM()}, new(noEvidence)))(t)
	if _, err := good.Resource(ctx, abc); err != nil {
		t.Error(err)
	}
	started := time.Now()
	system := must(attest.NewKBSClient(attest.KBSConfig{URL: k.URL}, new(noEvidence)))(t)
	if _, err := system.Resource(ctx, abc); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the root: %v", err)
	}
	if d := time.Since(started); d > 20*time.Second {
		t.Errorf("an untrusted certificate was tried again for %v", d)
	}
	for name, cfg := range map[string]attest.KBSConfig{
		"no PEM":     {URL: k.URL, RootPEM: "nonsense"},
		"no scheme":  {URL: "127.0.0.1:8080"},
		"ftp":        {URL: "ftp://host"},
		"no host":    {URL: "https://"},
		"user":       {URL: "https://a:b@host"},
		"empty":      {},
		"key":        {URL: k.URL, KeyAlg: "ML-KEM-768+A192KW"},
		"with query": {URL: "https://host/?a=b"},
	} {
		if _, err := attest.NewKBSClient(cfg, new(noEvidence)); err == nil {
			t.Errorf("%s: made a client", name)
		}
	}
	if _, err := attest.NewKBSClient(attest.KBSConfig{URL: k.URL}, nil); err == nil {
		t.Error("made a client without an attester")
	}
	var log strings.Builder
	_ = must(attest.NewKBSClient(attest.KBSConfig{URL: "http://host", Log: slog.New(slog.NewTextHandler(&log, nil))}, new(noEvidence)))(t)
	if !strings.Contains(log.String(), "insecure") {
		t.Errorf("plain HTTP was logged as %q", log.String())
	}
}

func TestTokenAndKey(t *testing.T) {
	_, client, _ := newLenient(t, nil)
	ctx := testContext(t)
	token, key, err := client.Token(ctx)
	if err != nil || token == "" {
		t.Fatalf("token %q, %v", token, err)
	}
	if _, ok := key.(interface{ Public() crypto.PublicKey }); !ok {
		t.Errorf("key is a %T", key)
	}
	again, _, err := client.Token(ctx)
	if err != nil || again != token {
		t.Errorf("second token differs (%v)", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := must(attest.NewKBSClient(attest.KBSConfig{URL: "http://127.0.0.1:1"}, new(noEvidence)))(t).Token(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
