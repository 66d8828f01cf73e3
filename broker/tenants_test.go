package broker

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/server"
	"github.com/cloister/cloister/broker/tenant"
	"github.com/cloister/cloister/wire/kbs"
)

// rootCall makes a request as the root's administrator.
func (w *world) rootCall(method, path, body string) (int, []byte) {
	w.t.Helper()
	token, err := os.ReadFile(filepath.Join(w.b.cfg.DataDir, AdminTokenFile))
	w.must(err)
	return w.guest().do(method, path, []byte(body), http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(token))}})
}

// tenant makes a tenant and returns its administrator.
func (w *world) tenant(name, quota string) (*client.Client, string) {
	w.t.Helper()
	status, answer := w.rootCall("POST", "/cloister/v1/tenants", `{"name":"`+name+`","quota":`+quota+`}`)
	var made server.TenantToken
	if err := json.Unmarshal(answer, &made); status != http.StatusOK || err != nil {
		w.t.Fatalf("making tenant %s: %d %s", name, status, answer)
	}
	file := filepath.Join(w.t.TempDir(), "token")
	w.must(os.WriteFile(file, []byte(made.AdminToken), 0o600))
	admin, err := client.New(client.Config{URL: w.url + tenantPrefix + name, AdminTokenFile: file})
	w.must(err)
	return admin, made.AdminToken
}

// approve registers what the world's TPM shows.
func (w *world) approve(admin *client.Client) {
	w.t.Helper()
	values := map[string]any{"tpm_init_data": []string{w.tpm.PCR(8)}}
	for name, i := range map[string]int{"tpm_pcr00": 0, "tpm_pcr04": 4, "tpm_pcr07": 7, "tpm_pcr09": 9} {
		values[name] = []string{w.tpm.PCR(i)}
	}
	w.must(admin.RegisterReferenceValues(w.t.Context(), values))
}

// at lets a guest use another prefix of the same broker.
func (g *guest) at(prefix string) *guest {
	w := *g.w
	w.url += prefix
	g.w = &w
	return g
}

func TestTenantsAreApart(t *testing.T) {
	w := newWorld(t, nil)
	a, tokenA := w.tenant("team-a", `{}`)
	b, _ := w.tenant("team-b", `{}`)
	w.must(a.PutResource(t.Context(), "default/key/1", []byte("secret of a")))
	w.must(b.PutResource(t.Context(), "default/key/1", []byte("secret of b")))
	w.must(b.PutResource(t.Context(), "only/in/b", []byte("secret of b")))

	// Nothing is approved yet, although the root knows the guest.
	g := w.guest().at("/ns/team-a").ready()
	if status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil); status != http.StatusUnauthorized {
		t.Fatalf("values of the root count for a tenant: %d %s", status, answer)
	}
	w.approve(a)
	g = w.guest().at("/ns/team-a").ready()
	if g.cookie.Path != "/ns/team-a/kbs/v0" {
		t.Errorf("the session's cookie has path %s", g.cookie.Path)
	}
	status, jwe := g.do("GET", "/kbs/v0/resource/default/key/1", nil, nil)
	if status != http.StatusOK {
		t.Fatalf("resource: %d %s", status, jwe)
	}
	plain, err := kbs.Decrypt(jwe, g.key)
	w.must(err)
	if string(plain) != "secret of a" {
		t.Fatalf("got %q", plain)
	}
	if status, answer := g.do("GET", "/kbs/v0/resource/only/in/b", nil, nil); status != http.StatusNotFound {
		t.Errorf("a guest of a asks for what b has: %d %s", status, answer)
	}
	// Its token and its cookie are worth nothing elsewhere.
	auth := http.Header{"Authorization": {"Bearer " + g.token}}
	for _, prefix := range []string{"", "/ns/team-b"} {
		other := w.guest().at(prefix)
		other.cookie = g.cookie
		for _, h := range []http.Header{auth, nil} {
			if status, answer := other.do("GET", "/kbs/v0/resource/default/key/1", nil, h); status != http.StatusUnauthorized {
				t.Errorf("a guest of team-a at %q: %d %s", prefix, status, answer)
			}
		}
	}
	// Administrators are apart too.
	for _, tc := range []struct{ token, path string }{
		{tokenA, "/kbs/v0/reference-value"}, {tokenA, "/ns/team-b/kbs/v0/reference-value"}, {tokenA, "/cloister/v1/tenants"},
		{tokenA, "/cloister/v1/audit"},
	} {
		h := http.Header{"Authorization": {"Bearer " + tc.token}}
		if status, answer := w.guest().do("GET", tc.path, nil, h); status != http.StatusUnauthorized {
			t.Errorf("the token of team-a at %s: %d %s", tc.path, status, answer)
		}
	}
	if status, answer := w.rootCall("GET", "/ns/team-a/kbs/v0/reference-value", ""); status != http.StatusUnauthorized {
		t.Errorf("the root's token in team-a: %d %s", status, answer)
	}
	if status, answer := w.guest().do("GET", "/ns/team-a/cloister/v1/tenants", nil, http.Header{"Authorization": {"Bearer " + tokenA}}); status != http.StatusNotFound {
		t.Errorf("a tenant has tenants: %d %s", status, answer)
	}
	entries, err := a.Audit(t.Context(), 0)
	w.must(err)
	seen := 0
	for _, e := range entries {
		if e.Tenant != "team-a" {
			t.Errorf("team-a sees entry %d of %q", e.Seq, e.Tenant)
		}
		if e.Event == "resource-read" && e.Decision == "allow" {
			seen++
		}
	}
	if seen != 1 {
		t.Errorf("team-a sees %d of its reads, want 1", seen)
	}
}

func TestTenantQuota(t *testing.T) {
	w := newWorld(t, nil)
	a, _ := w.tenant("small", `{"resources":2,"bytes":2000,"reference_values":1,"policies":1}`)
	ctx := t.Context()
	w.must(a.PutResource(ctx, "a/b/1", []byte("one")))
	w.must(a.PutResource(ctx, "a/b/2", []byte("two")))
	if err := a.PutResource(ctx, "a/b/3", []byte("three")); err == nil || !strings.Contains(err.Error(), "at most 2") {
		t.Errorf("a third resource: %v", err)
	}
	if err := a.PutResource(ctx, "a/b/2", make([]byte, 4000)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("more bytes than the quota: %v", err)
	}
	w.must(a.DeleteResource(ctx, "a/b/1"))
	w.must(a.PutResource(ctx, "a/b/3", []byte("three")))
	if err := a.RegisterReferenceValues(ctx, map[string]any{"x": "1", "y": "2"}); err == nil {
		t.Error("two reference values are taken where one is allowed")
	}
	w.must(a.SetAttestationPolicy(ctx, "mine", "package policy\n"))
	if err := a.SetAttestationPolicy(ctx, "more", "package policy\n"); err == nil || !strings.Contains(err.Error(), "the store is full") {
		t.Errorf("a second policy: %v", err)
	}
	if status, answer := w.rootCall("POST", "/cloister/v1/tenants/small/quota", `{"resources":3}`); status != http.StatusOK {
		t.Fatalf("changing the quota: %d %s", status, answer)
	}
	w.must(a.PutResource(ctx, "a/b/4", make([]byte, 4000)))
	status, answer := w.rootCall("GET", "/cloister/v1/tenants", "")
	var list []tenant.Info
	if err := json.Unmarshal(answer, &list); status != http.StatusOK || err != nil || len(list) != 1 {
		t.Fatalf("list: %d %s", status, answer)
	}
	if u := list[0].Usage; u.Resources != 3 || u.Bytes < 4000 || list[0].Quota.Resources != 3 {
		t.Errorf("list is %s", answer)
	}
}

func TestTenantRate(t *testing.T) {
	w := newWorld(t, nil)
	a, _ := w.tenant("slow", `{"requests_per_second":0.1}`)
	if _, err := a.ListResources(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ListResources(t.Context()); err == nil || !strings.Contains(err.Error(), "too many requests for this tenant") {
		t.Errorf("a second request at once: %v", err)
	}
}

func TestTenantEnds(t *testing.T) {
	w := newWorld(t, nil)
	a, token := w.tenant("gone", `{}`)
	w.must(a.PutResource(t.Context(), "a/b/c", []byte("secret")))
	if status, answer := w.rootCall("DELETE", "/cloister/v1/tenants/gone", ""); status != http.StatusBadRequest {
		t.Fatalf("removed without confirmation: %d %s", status, answer)
	}
	if status, answer := w.rootCall("DELETE", "/cloister/v1/tenants/gone?confirm=gone", ""); status != http.StatusOK {
		t.Fatalf("removing: %d %s", status, answer)
	}
	if err := a.PutResource(t.Context(), "a/b/c", []byte("secret")); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("writing to a removed tenant: %v", err)
	}
	again, _ := w.tenant("gone", `{}`)
	list, err := again.ListResources(t.Context())
	w.must(err)
	if len(list) != 0 {
		t.Errorf("the new tenant has %v of the old one", list)
	}
	if status, _ := w.guest().do("GET", "/ns/gone/cloister/v1/resources", nil, http.Header{"Authorization": {"Bearer " + token}}); status != http.StatusUnauthorized {
		t.Errorf("the old tenant's token: %d", status)
	}
	// A new token ends the one before.
	status, answer := w.rootCall("POST", "/cloister/v1/tenants/gone/token", "")
	var fresh server.TenantToken
	if err := json.Unmarshal(answer, &fresh); status != http.StatusOK || err != nil {
		t.Fatalf("new token: %d %s", status, answer)
	}
	if _, err := again.ListResources(t.Context()); err == nil {
		t.Error("a replaced token still counts")
	}
}

func TestTenantPaths(t *testing.T) {
	w := newWorld(t, nil)
	w.tenant("team-a", `{}`)
	for _, path := range []string{
		"/ns/nobody/kbs/v0/auth", "/ns/team-a", "/ns/team-a/", "/ns/TEAM-A/kbs/v0/auth", "/ns//kbs/v0/auth", "/ns/team-a//kbs/v0/auth",
		"/ns/team%2Da/kbs/v0/auth", "/ns/team-a/../../kbs/v0/auth", "/ns/team-a/ns/team-a/kbs/v0/auth", "/ns/team-a/healthz", "/ns/team-a/metrics",
	} {
		if status, answer := w.guest().do("POST", path, []byte(`{"version":"0.4.0","tee":"tpm","extra-params":""}`), nil); status < 300 || status >= 500 {
			t.Errorf("%s: %d %s", path, status, answer)
		}
	}
	for _, name := range []string{"", "A", "-a", "a-", "a.b", "a/b", "a@b", strings.Repeat("a", 64)} {
		if status, answer := w.rootCall("POST", "/cloister/v1/tenants", `{"name":"`+name+`"}`); status != http.StatusBadRequest {
			t.Errorf("a tenant named %q: %d %s", name, status, answer)
		}
	}
	if status, answer := w.rootCall("POST", "/cloister/v1/tenants", `{"name":"team-a"}`); status != http.StatusConflict {
		t.Errorf("a second tenant of the name: %d %s", status, answer)
	}
	if status, answer := w.rootCall("POST", "/cloister/v1/tenants", `{"name":"neg","quota":{"bytes":-1}}`); status != http.StatusBadRequest {
		t.Errorf("a negative quota: %d %s", status, answer)
	}
}
