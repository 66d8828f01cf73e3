package broker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/wire/kbs"
)

func TestForeignTokens(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	g.cookie = nil
	parts := strings.Split(g.token, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	other, err := token.NewSigner(w.clock.now, 0, token.SigningKey{Private: key})
	w.must(err)
	foreign, err := other.Issue("x", map[string]any{"cpu0": map[string]any{"ear.status": "affirming"}})
	w.must(err)
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	w.must(err)
	better := base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(`"exp":1`), []byte(`"exp":2`), 1))
	for name, tok := range map[string]string{
		"alg none": none + "." + parts[1] + ".", "alg none with signature": none + "." + parts[1] + "." + parts[2],
		"other signer with its key in the header": foreign, "changed claims": parts[0] + "." + better + "." + parts[2],
		"no signature": parts[0] + "." + parts[1] + ".", "noise": "noise",
	} {
		status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + tok}})
		if n, text := w.detail(answer); status != http.StatusUnauthorized || n != "TokenVerifierError" {
			t.Errorf("%s: %d %s %s, want 401 TokenVerifierError", name, status, n, text)
		}
	}
	status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if n, _ := w.detail(answer); status != http.StatusUnauthorized || n != "TokenNotFound" {
		t.Errorf("no token: %d %s", status, n)
	}
}

func TestPathsAndLimits(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	for _, tc := range []struct {
		method, path string
		status       int
		name         string
	}{
		{"GET", "/kbs/v0/resource/default/key/../key/1", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default//1", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default%2fkey/1", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default/key/%2e%2e", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default/key/1/", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default/key", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default/key/.1", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/resource/default/key/1%00", 404, "InvalidRequestPath"},
		{"GET", "/kbs/v0/auth", 404, "PluginNotFound"},
		{"GET", "/kbs/v0/nebula-ca/credential", 404, "PluginNotFound"},
		{"PUT", "/kbs/v0/resource/default/key/1", 401, "PluginInternalError"},
		{"PATCH", "/kbs/v0/resource/default/key/1", 405, ""},
		{"POST", "/metrics", 405, ""},
		{"GET", "/kbs/v0/resource/default/key/1?a=%zz", 400, ""},
		{"GET", "/healthz", 200, ""},
		{"GET", "/kbs/v0/resource/default/key/missing", 404, "PluginInternalError"},
	} {
		status, answer := g.do(tc.method, tc.path, nil, nil)
		if status != tc.status {
			t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, status, answer, tc.status)
		} else if tc.name != "" {
			if name, _ := w.detail(answer); name != tc.name {
				t.Errorf("%s %s: %s, want %s", tc.method, tc.path, name, tc.name)
			}
		}
	}
	big := bytes.Repeat([]byte("x"), 2<<20+1)
	for path, body := range map[string][]byte{"/kbs/v0/auth": big, "/kbs/v0/attest": bytes.Repeat([]byte("x"), 8<<20+1)} {
		if status, answer := g.do("POST", path, body, nil); status != http.StatusRequestEntityTooLarge || !strings.Contains(string(answer), "payload reached size limit") {
			t.Errorf("POST %s of %d bytes: %d %.80s, want 413", path, len(body), status, answer)
		}
	}
	if status, answer := w.guest().do("POST", "/kbs/v0/attest", big, nil); status != http.StatusUnauthorized {
		t.Errorf("an attestation of 2 MiB and a byte: %d %.80s, want to have it judged", status, answer)
	}
	var failed *client.StatusError
	if err := w.admin.PutResource(t.Context(), "default/key/big", big); !errors.As(err, &failed) || failed.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("putting too large a resource: %v, want 413", err)
	}
}

func TestAdminNeedsToken(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	for _, tc := range []struct{ method, path, name string }{
		{"POST", "/kbs/v0/attestation-policy", "AdminAuthAccess"},
		{"POST", "/kbs/v0/resource-policy", "AdminAuthAccess"},
		{"GET", "/kbs/v0/resource-policy", "AdminAuthAccess"},
		{"GET", "/kbs/v0/resource-policy/resource-policy", "AdminAuthAccess"},
		{"GET", "/kbs/v0/attestation-policy", "AdminAuthAccess"},
		{"GET", "/kbs/v0/attestation-policy/default_cpu", "AdminAuthAccess"},
		{"POST", "/kbs/v0/reference-value", "AdminAuthAccess"},
		{"GET", "/kbs/v0/reference-value", "AdminAuthAccess"},
		{"GET", "/kbs/v0/reference-value/tpm_pcr04", "AdminAuthAccess"},
		{"DELETE", "/kbs/v0/reference-value/tpm_pcr04", "AdminAuthAccess"},
		{"POST", "/kbs/v0/resource/default/key/1", "AdminAuthInitialization"},
		{"DELETE", "/kbs/v0/resource/default/key/1", "AdminAuthInitialization"},
		{"GET", "/cloister/v1/status", "AdminAuthAccess"},
		{"GET", "/cloister/v1/resources", "AdminAuthAccess"},
		{"GET", "/cloister/v1/audit", "AdminAuthAccess"},
		{"GET", "/cloister/v1/attestations/00", "AdminAuthAccess"},
	} {
		for _, h := range []http.Header{nil, {"Authorization": {"Bearer wrong"}}, {"Authorization": {"Bearer " + g.token}}} {
			status, answer := g.do(tc.method, tc.path, []byte("{}"), h)
			if status != http.StatusUnauthorized {
				t.Fatalf("%s %s: %d %s, want 401", tc.method, tc.path, status, answer)
			}
			if name, _ := w.detail(answer); name != tc.name {
				t.Errorf("%s %s: %s, want %s", tc.method, tc.path, name, tc.name)
			}
		}
	}
}

func TestAdminJourney(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	g := w.guest().ready()
	refused := func(err error, status int, says string) {
		t.Helper()
		var failed *client.StatusError
		if !errors.As(err, &failed) || failed.Status != status || !strings.Contains(failed.Detail, says) {
			t.Errorf("error %v, want %d with %q", err, status, says)
		}
	}
	// Policies.
	refused(w.admin.SetResourcePolicy(ctx, "package policy\nallow {"), 401, "parsing policy")
	refused(w.admin.SetResourcePolicy(ctx, "package other\nallow := true"), 401, `want "package policy"`)
	refused(w.admin.SetResourcePolicy(ctx, "package policy\nallow if http.send({})"), 401, "http.send")
	w.must(w.admin.SetResourcePolicy(ctx, "package policy\nimport rego.v1\ndefault allow := false\nallow if data.query.door == \"open\"\n"))
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != 401 || !strings.Contains(string(answer), "policy resource-policy") {
		t.Errorf("resource without the word: %d %s", status, answer)
	}
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1?door=shut&door=open", nil, nil); status != 200 {
		t.Errorf("resource with the word: %d %s", status, answer)
	}
	w.must(w.admin.SetResourcePolicy(ctx, "package policy\nallow := \"yes\"\n"))
	if status, _ := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != 401 {
		t.Errorf("a policy that says \"yes\" instead of true allows: %d", status)
	}
	refused(w.admin.SetAttestationPolicy(ctx, "../x", "package policy"), 401, "policy id")
	w.must(w.admin.SetAttestationPolicy(ctx, "default_cpu", "package policy\ntrust_claims := {\"hardware\": 97}\n"))
	text, err := w.admin.Policy(ctx, client.AttestationPolicy, "default_cpu")
	if w.must(err); !strings.Contains(text, `"hardware": 97`) {
		t.Errorf("the policy that was set reads %q", text)
	}
	_, err = w.admin.Policy(ctx, client.ResourcePolicy, "default_cpu")
	refused(err, 404, "no policy")
	// Reference values.
	refused(w.admin.RegisterReferenceValues(ctx, map[string]any{}), 401, "names no value")
	refused(w.admin.DeleteReferenceValue(ctx, "nothing"), 404, "no reference value")
	records, err := w.admin.ListReferenceValues(ctx)
	w.must(err)
	if len(records) != 5 || records[0].By != "admin" || records[0].Source != "sample" {
		t.Errorf("reference values are %+v", records)
	}
	w.must(w.admin.DeleteReferenceValue(ctx, "tpm_pcr04"))
	// Resources.
	w.must(w.admin.DeleteResource(ctx, "default/key/1"))
	refused(w.admin.DeleteResource(ctx, "default/key/1"), 404, "does not exist")
	refused(w.admin.PutResource(ctx, "default/key", nil), 404, "path has 2 parts")
	// Status, audit, health.
	st, err := w.admin.Status(ctx)
	w.must(err)
	if st.Resources != 0 || st.ReferenceValues != 4 || st.Sessions != 1 || len(st.Verifiers) < 14 || st.Verifiers[0].TEE != "tpm" || !st.Verifiers[0].Ready {
		t.Errorf("status is %+v", st)
	}
	w.must(w.admin.Healthy(ctx))
	entries, err := w.admin.Audit(ctx, 0)
	w.must(err)
	if uint64(len(entries)) != st.AuditEntries || entries[len(entries)-1].Hash != st.AuditHead {
		t.Errorf("audit has %d entries to %s, status says %d to %s", len(entries), entries[len(entries)-1].Hash, st.AuditEntries, st.AuditHead)
	}
	rest, err := w.admin.Audit(ctx, entries[1].Seq)
	w.must(err)
	if len(rest) != len(entries)-2 {
		t.Errorf("audit since 2 has %d entries, want %d", len(rest), len(entries)-2)
	}
	for _, event := range []string{"auth", "attest", "resource-read", "resource-write", "resource-delete", "resource-policy", "attestation-policy", "reference-value", "reference-value-delete"} {
		if !has(entries, event) {
			t.Errorf("the audit log has no %q", event)
		}
	}
	_, err = w.admin.Explain(ctx, strings.Repeat("0", 32))
	refused(err, 404, "no record of request")
}

func has(entries []audit.Entry, event string) bool {
	for _, e := range entries {
		if e.Event == event {
			return true
		}
	}
	return false
}

// TestNothingIsReleasedWithoutAudit closes the audit log under a running broker.
func TestNothingIsReleasedWithoutAudit(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	w.b.root.server.Audit = brokenAudit{w.b.audit}
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != 401 || !strings.Contains(string(answer), "nothing is released") {
		t.Errorf("resource: %d %s", status, answer)
	}
	if status, _ := w.guest().auth(); status != 401 {
		t.Errorf("auth: %d, want 401", status)
	}
	if err := w.admin.PutResource(t.Context(), "default/key/2", []byte("x")); err == nil {
		t.Error("a resource was stored without a record")
	}
	n, err := w.b.root.server.Resources.Count(t.Context())
	w.must(err)
	if n != 1 {
		t.Errorf("there are %d resources, want 1", n)
	}
}

// TestRefusalIsRecordedWithoutClient lets the client go away before it is answered.
func TestRefusalIsRecordedWithoutClient(t *testing.T) {
	w := newWorld(t, nil)
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	for _, path := range []string{"/kbs/v0/resource/default/key/1", "/cloister/v1/status"} {
		req := httptest.NewRequestWithContext(ctx, "GET", path, nil)
		w.b.Handler().ServeHTTP(httptest.NewRecorder(), req)
	}
	entries, err := w.admin.Audit(t.Context(), 0)
	w.must(err)
	denied := map[string]int{}
	for _, e := range entries {
		if e.Decision == audit.Deny {
			denied[e.Event]++
		}
	}
	if denied["resource-read"] != 1 || denied["admin"] != 1 {
		t.Errorf("the audit log has the refusals %v, want one resource-read and one admin", denied)
	}
}

// TestStrangersDoNotPushOutRecords asks without an attestation more often than there is room for records.
func TestStrangersDoNotPushOutRecords(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Records.MaxDecisions = 4 })
	g := w.guest()
	g.tpm.Measure(9, []byte("init=/bin/sh"))
	g.ready().do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	id := g.last.Header.Get("X-Request-Id")
	for range 8 {
		if status, answer := w.guest().do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != 401 {
			t.Fatalf("resource without attestation: %d %s, want 401", status, answer)
		}
	}
	if _, err := w.admin.Explain(t.Context(), id); err != nil {
		t.Errorf("the denial of a guest cannot be explained any more: %v", err)
	}
}

type brokenAudit struct{ *audit.Log }

func (brokenAudit) Append(context.Context, audit.Entry) error { return errors.New("disk full") }

func (brokenAudit) Queue(context.Context, audit.Entry) error { return errors.New("disk full") }

// TestSecretsStayInside looks for the secret, the admin token and session ids everywhere a broker writes.
func TestSecretsStayInside(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	g.do("GET", "/kbs/v0/resource/default/key/other", nil, nil)
	g.do("GET", "/kbs/v0/nosuch/x", nil, nil)
	_, metrics := g.do("GET", "/metrics", nil, nil)
	if strings.Contains(string(metrics), "nosuch") {
		t.Errorf("a plugin that is not there is a label:\n%s", metrics)
	}
	if !strings.Contains(string(metrics), "kbs_resource_reads_total 1") || strings.Contains(string(metrics), "default/key") {
		t.Errorf("metrics lack the read, or name the resource:\n%s", metrics)
	}
	if !strings.Contains(string(metrics), `kbs_plugin_requests_total{plugin_name="resource"}`) || strings.Contains(string(metrics), "kbs_plugin_errors_total{") {
		t.Errorf("metrics lack the requests to the plugin, or take a secret that is not there for its failure:\n%s", metrics)
	}
	adminToken, err := os.ReadFile(filepath.Join(w.dir, "data", AdminTokenFile))
	w.must(err)
	secrets := map[string]string{
		"secret": secretText, "admin token": strings.TrimSpace(string(adminToken)), "session": g.cookie.Value,
		"attestation token": g.token, "credential": g.answer,
	}
	places := map[string][]byte{"metrics": metrics, "log": w.log.Bytes()}
	for _, f := range []string{StoreFile, AuditFile} {
		places[f], err = os.ReadFile(filepath.Join(w.dir, "data", f))
		w.must(err)
	}
	for place, text := range places {
		for what, s := range secrets {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%s holds the %s", place, what)
			}
		}
	}
	for _, f := range []string{StoreFile, StoreKeyFile, AuditFile, AdminTokenFile} {
		info, err := os.Stat(filepath.Join(w.dir, "data", f))
		w.must(err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", f, info.Mode().Perm())
		}
	}
}

// TestRestart: secrets, policies, the signing key and the admin token survive; sessions do not.
// TestAuditIsFitForTerminals has a stranger ask for paths with line feeds and terminal escapes in them.
func TestAuditIsFitForTerminals(t *testing.T) {
	w := newWorld(t, nil)
	for _, path := range []string{"/kbs/v0/reference-value/%0A99%20allow", "/kbs/v0/reference-value/%1B[2J", "/kbs/v0/reference-value/%C2%9B2J"} {
		if status, answer := w.guest().do("DELETE", path, nil, nil); status != http.StatusNotFound {
			t.Errorf("DELETE %s: %d %s, want 404", path, status, answer)
		}
	}
	entries, err := w.admin.Audit(t.Context(), 0)
	w.must(err)
	for _, e := range entries {
		if strings.ContainsFunc(e.Subject+e.Reason, unicode.IsControl) {
			t.Errorf("entry %d has control characters: %q, %q", e.Seq, e.Subject, e.Reason)
		}
	}
}

// TestForeignDataDir starts with what another user of the machine could have prepared.
func TestForeignDataDir(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"data directory": func(dir string) error { return os.Chmod(dir, 0o777) },
		"admin token file": func(dir string) error {
			file := filepath.Join(dir, AdminTokenFile)
			return errors.Join(os.WriteFile(file, []byte("cloister-admin-"+strings.Repeat("A", 43)+"\n"), 0o600), os.Chmod(file, 0o644))
		},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Chmod(dir, 0o700), prepare(dir)); err != nil {
			t.Fatal(err)
		}
		b, err := Open(t.Context(), inDir(dir), Options{Log: slog.New(slog.DiscardHandler), Version: "test"})
		if err == nil {
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("a %s that others may use: %v", name, err)
		}
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	cfg := w.b.cfg
	w.stop()
	w.start(cfg)
	status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if name, _ := w.detail(answer); status != 401 || name != "TokenNotFound" {
		t.Errorf("old session: %d %s", status, answer)
	}
	status, jwe := g.do("GET", "/kbs/v0/resource/default/key/1", nil, http.Header{"Authorization": {"Bearer " + g.token}})
	if status != 200 {
		t.Fatalf("old token: %d %s", status, jwe)
	}
	plain, err := kbs.Decrypt(jwe, g.key)
	w.must(err)
	if string(plain) != secretText {
		t.Errorf("got %q", plain)
	}
	if _, err := w.admin.Status(t.Context()); err != nil {
		t.Errorf("the admin token was lost: %v", err)
	}
}

// TestServeTLS starts the program on a free port, with the certificate made at the first start.
func TestServeTLS(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan int, 1)
	var stderr bytes.Buffer
	go func() {
		done <- Main(ctx, []string{"serve", "--data", dir, "--listen", "127.0.0.1:0"}, "test", in, &stderr)
	}()
	var ready Ready
	if err := json.NewDecoder(out).Decode(&ready); err != nil {
		t.Fatalf("ready line: %v", err)
	}
	c, err := client.New(client.Config{URL: ready.URL, CertificateFile: ready.TLSCertificate, AdminTokenFile: ready.AdminTokenFile})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	stranger, err := client.New(client.Config{URL: ready.URL})
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Healthy(t.Context()); err == nil {
		t.Error("a client that knows no certificate connects")
	}
	if _, err := Open(t.Context(), inDir(dir), Options{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "another broker process") {
		t.Errorf("second broker on the same data: %v", err)
	}
	stop()
	select {
	case code := <-done:
		if code != 0 {
			t.Errorf("exit code %d: %s", code, stderr.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the broker does not stop")
	}
}

func inDir(dir string) config.Config {
	c := config.Default()
	c.DataDir = dir
	return c
}

func TestCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "no command"},
		{[]string{"dance"}, 2, `unknown command "dance"`},
		{[]string{"serve", "extra"}, 2, `unexpected argument "extra"`},
		{[]string{"serve", "--nope"}, 2, "nope"},
		{[]string{"serve", "--config", "/nonexistent.toml"}, 1, "/nonexistent.toml"},
		{[]string{"validate"}, 2, "--config is missing"},
		{[]string{"example-config"}, 0, "insecure_unknown_tpm = false"},
		{[]string{"version"}, 0, "cloister-broker test"},
		{[]string{"help"}, 0, "Usage"},
	} {
		var out bytes.Buffer
		if code := Main(t.Context(), tc.args, "test", &out, &out); code != tc.code || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%v: exit %d, %q, want %d with %q", tc.args, code, out.String(), tc.code, tc.says)
		}
	}
}

// FuzzAttest hands bodies to the verification of a live session. What is not evidence is refused, and nothing panics.
func FuzzAttest(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"init-data":{"format":"toml","body":"x"},"runtime-data":{"nonce":"","tee-pubkey":{"kty":"EC"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":"{}"}}`))
	cfg := config.Default()
	cfg.DataDir, cfg.Server.InsecureHTTP, cfg.Attestation.MaxSessions = f.TempDir(), true, 1_000_000
	b, err := Open(f.Context(), cfg, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := b.Close(); err != nil {
			f.Error(err)
		}
	})
	b.root.server.Audit = silentAudit{b.audit}
	send := func(path string, body []byte, cookies []*http.Cookie) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
		for _, c := range cookies {
			r.AddCookie(c)
		}
		rec := httptest.NewRecorder()
		b.Handler().ServeHTTP(rec, r)
		return rec
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		res := send("/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"tpm","extra-params":""}`), nil)
		var c kbs.Challenge
		if err := json.Unmarshal(res.Body.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		// The nonce is put in, so that bodies get past the first check.
		body = bytes.ReplaceAll(body, []byte(`"nonce":""`), []byte(`"nonce":"`+c.Nonce+`"`))
		res = send("/kbs/v0/attest", body, res.Result().Cookies())
		if res.Code != http.StatusUnauthorized && res.Code != http.StatusRequestEntityTooLarge {
			t.Fatalf("body %q: %d %s, want a refusal", body, res.Code, res.Body)
		}
	})
}

type silentAudit struct{ *audit.Log }

func (silentAudit) Append(context.Context, audit.Entry) error { return nil }

func (silentAudit) Queue(context.Context, audit.Entry) error { return nil }

// TestReferenceGroups: what one pod's group brought is removed together, and what another one needs stays.
func TestReferenceGroups(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	count := func(name string) int {
		t.Helper()
		records, err := w.admin.ListReferenceValues(ctx)
		w.must(err)
		for _, r := range records {
			if r.Name == name {
				var list []any
				w.must(json.Unmarshal(r.Value, &list))
				return len(list)
			}
		}
		return 0
	}
	before := count("tpm_init_data")
	w.must(w.admin.AddReferenceValues(ctx, "pod-a", map[string]any{"tpm_init_data": []string{"aa", "shared"}, "only_a": []string{"1"}}))
	w.must(w.admin.AddReferenceValues(ctx, "pod-b", map[string]any{"tpm_init_data": []string{"shared"}}))
	if got := count("tpm_init_data"); got != before+2 {
		t.Errorf("%d values after two pods, want %d", got, before+2)
	}
	names, err := w.admin.DeleteReferenceGroup(ctx, "pod-a")
	w.must(err)
	if len(names) != 2 || count("tpm_init_data") != before+1 || count("only_a") != 0 {
		t.Errorf("after the removal of pod-a (%v): %d and %d values", names, count("tpm_init_data"), count("only_a"))
	}
	if _, err := w.admin.DeleteReferenceGroup(ctx, "nobody"); err == nil || !strings.Contains(err.Error(), "no reference value is of group") {
		t.Errorf("an unknown group: %v", err)
	}
	w.guest().ready() // the guest of the world is still approved
}
