package cocoas

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/wire/as"
)

func TestComposite(t *testing.T) {
	w := newWorld(t).start()
	c := w.client(nil)
	w.must(c.Check(t.Context()))
	items := w.sampleItems()
	v, err := c.Evaluate(t.Context(), "id1", "default", items)
	w.must(err)
	claims, err := token.Any{Service: c.Trust()}.Verify(v.Token)
	w.must(err)
	if _, ok := claims["submods"].(map[string]any)["gpu0"]; !ok {
		t.Errorf("the token has no submod of the device: %v", claims)
	}
	rec := v.Record
	if rec.ID != "id1" || rec.TEE != "sample" || rec.Kind != "attestation" || rec.Decision != "allow" || len(rec.Parts) != 2 {
		t.Fatalf("record is %+v", rec)
	}
	cpu, gpu := rec.Parts[0], rec.Parts[1]
	if cpu.Name != "cpu0" || cpu.TEE != "sample" || cpu.Policy != "default_cpu" || cpu.Status != "contraindicated" ||
		cpu.Vector["executables"] != 33 {
		t.Errorf("part of the machine is %+v", cpu)
	}
	if gpu.Name != "gpu0" || gpu.TEE != "sampledevice" || gpu.Policy != "default_gpu" {
		t.Errorf("part of the device is %+v", gpu)
	}
	if text, from := rec.Summary(); !strings.Contains(text, "cpu0 executables = 33") || len(from) == 0 {
		t.Errorf("summary is %q of %q", text, from)
	}
	if !strings.Contains(string(cpu.Evidence), "launch_digest") || strings.Contains(string(cpu.Evidence), "package agent_policy") {
		t.Errorf("kept evidence is %s, want claims, and the policy of the guest by digest only", cpu.Evidence)
	}
	evidence := claims["submods"].(map[string]any)["cpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)
	if evidence["init_data_claims"] == nil {
		t.Error("the service was not given the text of the init data")
	}
}

func TestTPM(t *testing.T) {
	w := newWorld(t).start()
	c := w.client(nil)
	v, err := c.Evaluate(t.Context(), "id", "default", w.tpmItems())
	w.must(err)
	if p := v.Record.Parts; len(p) != 1 || p[0].TEE != "tpm" || p[0].Name != "cpu0" {
		t.Errorf("parts are %+v", p)
	}
	// Evidence that was made for another session is refused by the service, and that is no outage.
	items, other := w.tpmItems(), w.tpmItems()
	items[0].Evidence = other[0].Evidence
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err == nil || errors.Is(err, outage.ErrUnavailable) ||
		!strings.Contains(err.Error(), "report_data") {
		t.Errorf("evidence of another session: %v", err)
	}
	if _, err := c.Evaluate(t.Context(), "id", "default", nil); err == nil {
		t.Error("no evidence is no error")
	}
	items[0].ReportData = make([]byte, 48)
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err == nil || !strings.Contains(err.Error(), "no SHA-2 digest") {
		t.Errorf("report data of something else: %v", err)
	}
	items[0].Runtime = nil
	if _, err := c.Evaluate(t.Context(), "id", "default", items); err == nil || !strings.Contains(err.Error(), "bound to") {
		t.Errorf("unbound evidence: %v", err)
	}
}

// TestStrangers: whoever is not the service, or signs with another key, is not believed.
func TestStrangers(t *testing.T) {
	w := newWorld(t).start()
	items := w.sampleItems()
	other := newWorld(t)
	_, err := w.client(func(c *Config) { c.CACerts = []string{other.certFile} }).Evaluate(t.Context(), "id", "default", items)
	if !errors.Is(err, outage.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of another authority: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"key":         func(c *Config) { c.JWKSets = []string{filepath.Join(other.dir, "keys.json")} },
		"issuer":      func(c *Config) { c.Issuer = "https://as.example" },
		"certificate": func(c *Config) { c.JWKSets, c.TokenCertificates = nil, []string{w.certFile} },
	} {
		_, err := w.client(change).Evaluate(t.Context(), "id", "default", items)
		if !errors.Is(err, token.ErrInvalid) || errors.Is(err, outage.ErrUnavailable) {
			t.Errorf("token of another %s: %v", name, err)
		}
	}
	if _, err := w.client(func(c *Config) { c.JWKSets, c.InsecureHeaderJWK = nil, true }).Evaluate(t.Context(), "id", "default",
		items); err != nil {
		t.Errorf("insecure_header_jwk: %v", err)
	}
	plain := "http://" + w.address
	if _, err := w.client(func(c *Config) { c.Address, c.CACerts = plain, nil }).Evaluate(t.Context(), "id", "default", items); err == nil {
		t.Error("plain HTTP to a TLS port worked")
	}
}

// TestReplay: a service gives the token of another request, of another guest, or of fewer devices.
func TestReplay(t *testing.T) {
	w := newWorld(t).start()
	honest := w.client(nil)
	first := w.sampleItems()
	v, err := honest.Evaluate(t.Context(), "id", "default", first)
	w.must(err)
	bare := w.sampleItems()
	v2, err := honest.Evaluate(t.Context(), "id", "default", bare[:1])
	w.must(err)
	tpm, err := honest.Evaluate(t.Context(), "id", "default", w.tpmItems())
	w.must(err)
	var give string
	liar := newWorld(t).pretend(&answers{evaluate: func(context.Context, *as.AttestationRequest) (string, error) { return give, nil }})
	c := liar.client(func(c *Config) { c.JWKSets = []string{filepath.Join(w.dir, "keys.json")} })
	give = v.Token
	if _, err := c.Evaluate(t.Context(), "id", "default", first); err != nil {
		t.Errorf("the right token: %v", err)
	}
	swapped := w.sampleItems()
	swapped[0].Runtime["nonce"] = first[0].Runtime["nonce"]
	swapped[0].ReportData = w.digest(swapped[0].Runtime)
	more := w.sampleItems()
	more[0].Runtime, more[0].ReportData = bare[0].Runtime, bare[0].ReportData
	for _, tc := range []struct{ name, give, says string }{
		{"another request", v.Token, "it is about another request"},
		{"another TEE", tpm.Token, `it is about evidence of "tpm"`},
		{"nothing", "", "not valid"},
	} {
		give = tc.give
		if _, err := c.Evaluate(t.Context(), "id", "default", w.sampleItems()); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("token of %s: %v, want %q", tc.name, err, tc.says)
		}
	}
	give = v.Token
	if _, err := c.Evaluate(t.Context(), "id", "default", swapped); err == nil || !strings.Contains(err.Error(), "tee-pubkey") {
		t.Errorf("token of another guest's key: %v", err)
	}
	give = v2.Token
	if _, err := c.Evaluate(t.Context(), "id", "default", more); err == nil ||
		!strings.Contains(err.Error(), "0 submods about evidence of sampledevice") {
		t.Errorf("token without the device: %v", err)
	}
	give = v.Token
	if _, err := c.Evaluate(t.Context(), "id", "default", first[:1]); err == nil || !strings.Contains(err.Error(), "which was not sent") {
		t.Errorf("token of one device more: %v", err)
	}
}

// TestOutages: killed in the middle, slow, back again; too much; a no.
func TestOutages(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{}, 8)
	block := func(ctx context.Context, _ *as.AttestationRequest) (string, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return "", ctx.Err()
	}
	a := &answers{evaluate: block}
	w.pretend(a)
	c := w.client(nil)
	done := make(chan error, 1)
	items := w.sampleItems()
	go func() {
		_, err := c.Evaluate(t.Context(), "id", "default", items)
		done <- err
	}()
	<-entered
	w.server.Stop()
	if err := <-done; !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("killed in the middle: %v", err)
	}
	if err := c.Check(t.Context()); !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("health of a service that is down: %v", err)
	}
	// It is back on the same port: the same client finds it, at the latest when its pause is over.
	w.serve(w.api.GRPC(grpc.Creds(credentials.NewTLS(w.tls()))), w.address)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := c.Evaluate(ctx, "id", "default", items)
		if err == nil {
			break
		}
		if !errors.Is(err, outage.ErrUnavailable) || ctx.Err() != nil {
			t.Fatalf("after the service is back: %v", err)
		}
	}
	slow := newWorld(t).pretend(&answers{evaluate: block})
	_, err := slow.client(func(c *Config) { c.TimeoutMS = 50 }).Evaluate(t.Context(), "id", "default", items)
	if !errors.Is(err, outage.ErrUnavailable) || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("slow: %v", err)
	}
	big := newWorld(t).pretend(&answers{evaluate: func(context.Context, *as.AttestationRequest) (string, error) {
		return strings.Repeat("A", 10<<20), nil
	}})
	if _, err = big.client(nil).Evaluate(t.Context(), "id", "default", items); err == nil ||
		errors.Is(err, outage.ErrUnavailable) || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("an answer of 10 MiB: %v", err)
	}
	large := w.sampleItems()
	large[0].Evidence = json.RawMessage(`"` + strings.Repeat("A", 8<<20) + `"`)
	if _, err = big.client(nil).Evaluate(t.Context(), "id", "default", large); err == nil ||
		!strings.Contains(err.Error(), "at most 8388608 are sent") {
		t.Errorf("evidence of 8 MiB: %v", err)
	}
	no := newWorld(t).pretend(&answers{evaluate: func(context.Context, *as.AttestationRequest) (string, error) {
		return "", status.Error(codes.Aborted, "0: bad\n1: \x1b[31mquote"+strings.Repeat("x", 16<<10))
	}})
	_, err = no.client(nil).Evaluate(t.Context(), "id", "default", items)
	if err == nil || errors.Is(err, outage.ErrUnavailable) || !strings.Contains(err.Error(), "0: bad 1: [31mquote") ||
		len(err.Error()) > 4<<10 {
		t.Errorf("a no: %.200q", err)
	}
}

func TestChallenge(t *testing.T) {
	a := &answers{nonce: `{"request_blob":"x"}`}
	w := newWorld(t).pretend(a)
	c := w.client(nil)
	ch, err := c.Challenge(t.Context(), "snp", nil)
	if err != nil || ch.Nonce != "" || a.asked != nil {
		t.Errorf("snp: %+v %v, asked %v", ch, err, a.asked)
	}
	params := json.RawMessage(`{"supported-hash-algorithms":["sha384","SHA512"]}`)
	ch, err = c.Challenge(t.Context(), "se", params)
	if err != nil || ch.Nonce != a.nonce || ch.Hash != "sha512" || ch.Params.SelectedHashAlgorithm != "sha512" {
		t.Errorf("se: %+v %v", ch, err)
	}
	if a.asked["tee"] != "se" || a.asked["tee_params"] != string(params) {
		t.Errorf("the service was asked %v", a.asked)
	}
	if _, err := c.Challenge(t.Context(), "se", json.RawMessage(`{"supported-hash-algorithms":["sha384"]}`)); err == nil {
		t.Error("a guest without sha512 is challenged")
	}
	a.nonce = ""
	if _, err := c.Challenge(t.Context(), "se", params); err == nil {
		t.Error("an empty challenge is taken")
	}
	if _, err := c.Challenge(t.Context(), "S\nE", nil); err == nil {
		t.Error("a bad name is taken")
	}
}

func TestAdministration(t *testing.T) {
	w := newWorld(t).start()
	c := w.client(nil)
	const text = "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2}\n"
	w.must(Policies{c}.Put(t.Context(), "mine_cpu", text))
	if p, err := w.policies.Get(t.Context(), "mine_cpu"); err != nil || p.ID() != "mine_cpu" {
		t.Errorf("policy at the service: %v %v", p, err)
	}
	v, err := c.Evaluate(t.Context(), "id", "mine", w.sampleItems()[:1])
	if err != nil || v.Record.Parts[0].Status != "affirming" || v.Record.Parts[0].Policy != "mine_cpu" ||
		len(v.Record.Parts[0].Findings) != 0 {
		t.Errorf("by the new policy: %+v %v", v, err)
	}
	stranger := w.client(func(c *Config) { c.AdminTokenFile = "" })
	if err := stranger.SetAttestationPolicy(t.Context(), "mine_cpu", text); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("a stranger's policy: %v", err)
	}
	refs := c.References()
	names, err := refs.Register(t.Context(), []byte(`{"version":"0.1.0","type":"sample","payload":"eyJhIjpbIjEiXX0="}`), "ann")
	if err != nil || len(names) != 1 || names[0] != "a" {
		t.Errorf("register: %v %v", names, err)
	}
	if value, err := refs.Lookup(t.Context(), "a"); err != nil || string(value) != `["1"]` {
		t.Errorf("lookup: %s %v", value, err)
	}
}

// TestKeysOverHTTPS: the set is fetched from the service, also when it was away at first and when its key changes.
func TestKeysOverHTTPS(t *testing.T) {
	w := newWorld(t).start()
	var up atomic.Bool
	rest := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			http.Error(rw, "not yet", http.StatusServiceUnavailable)
			return
		}
		w.api.REST().ServeHTTP(rw, r)
	}))
	rest.TLS = w.tls()
	rest.StartTLS()
	defer rest.Close()
	for _, address := range []string{rest.URL + "/.well-known/jwks.json", rest.URL} { // the second by discovery
		up.Store(false)
		c := w.client(func(c *Config) { c.JWKSets = []string{address} })
		if _, err := c.Evaluate(t.Context(), "id", "default", w.sampleItems()); !errors.Is(err, token.ErrInvalid) ||
			!errors.Is(err, outage.ErrUnavailable) {
			t.Errorf("without keys: %v, want a token that cannot be checked now", err)
		}
		c = w.client(func(c *Config) { c.JWKSets = []string{address} })
		up.Store(true)
		if _, err := c.Evaluate(t.Context(), "id", "default", w.sampleItems()); err != nil {
			t.Errorf("keys of %s: %v", address, err)
		}
	}
}

// TestClientCertificate: the service wants to know who asks.
func TestClientCertificate(t *testing.T) {
	w := newWorld(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kbs"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	w.must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	w.must(err)
	certFile := w.file("kbs.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyFile := w.file("kbs.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	conf := w.tls()
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	conf.ClientCAs = x509.NewCertPool()
	cert, err := x509.ParseCertificate(der)
	w.must(err)
	conf.ClientCAs.AddCert(cert)
	w.serve(w.api.GRPC(grpc.Creds(credentials.NewTLS(conf))), "127.0.0.1:0")
	items := w.sampleItems()
	if _, err := w.client(nil).Evaluate(t.Context(), "id", "default", items); !errors.Is(err, outage.ErrUnavailable) {
		t.Errorf("without a certificate: %v", err)
	}
	known := w.client(func(c *Config) { c.ClientCertificate, c.ClientKey = certFile, keyFile })
	if _, err := known.Evaluate(t.Context(), "id", "default", items); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
}
