package cocoas

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/refstore/remote"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/kbs"
)

// keyBroker is a key broker without verifiers and without a signing key of its own.
func (w *world) keyBroker(c *Client) *httptest.Server {
	w.t.Helper()
	dir := w.t.TempDir()
	db, err := store.Open(filepath.Join(dir, "store.db"))
	w.must(err)
	log, err := audit.Open(filepath.Join(dir, "audit.jsonl"), audit.Options{Now: time.Now})
	w.must(err)
	key, err := seal.LoadOrCreate(filepath.Join(dir, "store.key"))
	w.must(err)
	policies := rego.NewSet(db, resource.PolicyNamespace)
	gate, err := resource.NewGate(w.t.Context(), policies)
	w.must(err)
	w.must(policies.Put(w.t.Context(), resource.PolicyID, `package policy
import rego.v1
default allow := false
allow if input.submods.cpu0["ear.veraison.annotated-evidence"].init_data_claims["policy.rego"] == "package agent_policy"`))
	backend := resource.NewStore(db, key)
	path, err := resource.ParsePath([]string{"default", "key", "1"})
	w.must(err)
	w.must(backend.Put(w.t.Context(), path, []byte("the secret")))
	none, err := verifier.NewSet(nil)
	w.must(err)
	serves := resources.New(backend)
	plugins, err := plugin.NewSet(w.t.Context(), []plugin.Entry{{Name: resources.Name, New: func(context.Context) (plugin.Plugin, error) { return serves, nil }}})
	w.must(err)
	srv := httptest.NewServer(server.New(server.Parts{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now, Sessions: session.NewManager(time.Now, 0, 0), Verifiers: none,
		Attestation: c, Tokens: token.Any{Service: c.Trust()}, Gate: gate, Plugins: plugins, Resources: serves, AttestationPolicies: Policies{c},
		ResourcePolicies: policies, References: c.References(), Audit: log, Decisions: decision.NewStore(db, 0), Admins: adminauth.DenyAll{},
		Metrics: server.NewMetrics("test", func() float64 { return 0 }),
	}))
	w.t.Cleanup(func() {
		srv.Close()
		if err := errors.Join(log.Close(), db.Close()); err != nil {
			w.t.Error(err)
		}
	})
	return srv
}

func (w *world) post(client *http.Client, url string, in, out any) int {
	w.t.Helper()
	body, err := json.Marshal(in)
	w.must(err)
	resp, err := client.Post(url, "application/json", bytes.NewReader(body))
	w.must(err)
	defer resp.Body.Close()
	w.must(json.NewDecoder(resp.Body).Decode(out))
	return resp.StatusCode
}

// TestKeyBroker: a guest gets its secret from a key broker whose attestation service is elsewhere; while that is away, it is
// told to come again, and then it works.
func TestKeyBroker(t *testing.T) {
	w := newWorld(t).start()
	srv := w.keyBroker(w.client(nil))
	jar, err := cookiejar.New(nil)
	w.must(err)
	guest := &http.Client{Jar: jar}
	var challenge kbs.Challenge
	code := w.post(guest, srv.URL+"/kbs/v0/auth", kbs.Request{Version: kbs.Version, TEE: "sample",
		ExtraParams: json.RawMessage(`""`)}, &challenge)
	if code != http.StatusOK {
		t.Fatalf("auth: %d", code)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	jwk, err := kbs.NewJWK(&key.PublicKey)
	w.must(err)
	att := kbs.Attestation{
		InitData: &kbs.InitData{Format: "toml", Body: initToml}, RuntimeData: kbs.RuntimeData{Nonce: challenge.Nonce, TEEPubKey: jwk},
	}
	device, err := kbs.ReportData(att.RuntimeData, nil, kbs.DefaultHash)
	w.must(err)
	att.TEEEvidence.Additional = `{"sampledevice":` + string(sampleEvidence(device)) + `}`
	machine, err := kbs.ReportData(att.RuntimeData, &att.TEEEvidence.Additional, kbs.DefaultHash)
	w.must(err)
	att.TEEEvidence.Primary = sampleEvidence(machine)

	w.server.Stop()
	var refused kbs.ErrorInformation
	code = w.post(guest, srv.URL+"/kbs/v0/attest", att, &refused)
	if code != http.StatusServiceUnavailable || !strings.Contains(refused.Detail, "cannot be reached") {
		t.Errorf("while the service is away: %d %s, want 503", code, refused.Detail)
	}
	w.serve(w.api.GRPC(grpc.Creds(credentials.NewTLS(w.tls()))), w.address)
	var answer struct {
		kbs.TokenResponse
		kbs.ErrorInformation
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if code = w.post(guest, srv.URL+"/kbs/v0/attest", att, &answer); code != http.StatusServiceUnavailable || time.Now().After(deadline) {
			break
		}
	}
	if code != http.StatusOK || answer.Token == "" {
		t.Fatalf("attest: %d %+v", code, answer)
	}
	resp, err := guest.Get(srv.URL + "/kbs/v0/resource/default/key/1")
	w.must(err)
	defer resp.Body.Close()
	jwe, err := io.ReadAll(resp.Body)
	w.must(err)
	plain, err := kbs.Decrypt(jwe, key)
	if err != nil || string(plain) != "the secret" {
		t.Errorf("resource: %d %.200s, %v", resp.StatusCode, jwe, err)
	}
}

// TestThreeProcesses: key broker, attestation service and reference values apart. What is registered by way of the first approves a
// guest at the second; while the third is away nobody is approved, nor refused for good.
func TestThreeProcesses(t *testing.T) {
	values := newWorld(t).start()
	var cfg remote.Config
	cfg.Address, cfg.CACerts, cfg.CacheMS = "https://"+values.address, []string{values.certFile}, -1
	cfg.AdminTokenFile = filepath.Join(values.dir, "admin-token")
	refs, err := remote.Open(cfg, time.Now)
	values.must(err)
	defer refs.Close()
	w := newWorldWith(t, refs).start()
	c := w.client(nil)
	const policy = "package policy\nimport rego.v1\ndefault hardware := 97\n" +
		"hardware := 2 if input.sample.svn in query_reference_value(\"svn\")\n" +
		"trust_claims := {\"hardware\": hardware}\n"
	w.must(c.SetAttestationPolicy(t.Context(), "default_cpu", policy))
	items := w.sampleItems()[:1]
	v, err := c.Evaluate(t.Context(), "id", "default", items)
	if err != nil || v.Record.Parts[0].Status != "contraindicated" {
		t.Fatalf("before the value is registered: %+v %v", v, err)
	}
	_, err = c.References().Register(t.Context(), []byte(`{"version":"0.1.0","type":"sample","payload":"eyJzdm4iOlsiMSJdfQ=="}`), "ann")
	w.must(err)
	if v, err = c.Evaluate(t.Context(), "id", "default", items); err != nil || v.Record.Parts[0].Status != "affirming" {
		t.Fatalf("after: %+v %v", v, err)
	}
	values.server.Stop()
	if v, err = c.Evaluate(t.Context(), "id", "default", items); !errors.Is(err, outage.ErrUnavailable) ||
		!strings.Contains(err.Error(), values.address) {
		t.Errorf("without reference values: %+v %v, want an outage that says where", v, err)
	}
}
