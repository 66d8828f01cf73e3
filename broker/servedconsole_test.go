package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/config"
)

// browser is an administrator who uses the console.
type browser struct {
	*served
	http *http.Client
	seen strings.Builder // every page
}

func (s *served) browser() *browser {
	s.t.Helper()
	b := &browser{served: s, http: s.http()}
	var err error
	b.http.Jar, err = cookiejar.New(nil)
	s.must(err)
	return b
}

// page loads a page and wants a status.
func (b *browser) page(path string, want int) string {
	b.t.Helper()
	code, body := b.do(b.http, "GET", path, "")
	b.seen.WriteString(body)
	if code != want {
		b.t.Errorf("page %s: %d, want %d: %.300s", path, code, want, body)
	}
	return body
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// submit sends a form that stands on a page, and wants a status; it returns where the answer leads to and what it says.
func (b *browser) submit(page, path string, form url.Values, want int) (string, string) {
	b.t.Helper()
	if m := csrfField.FindStringSubmatch(b.page(page, http.StatusOK)); m != nil {
		form.Set("csrf", m[1])
	}
	res, body := b.post(b.http, path, form)
	b.seen.WriteString(body)
	if res.StatusCode != want {
		b.t.Errorf("form %s: %d, want %d: %.500s", path, res.StatusCode, want, body)
	}
	return res.Header.Get("Location"), body
}

func (b *browser) signIn(token string, want int) {
	b.t.Helper()
	b.submit("/console/sign-in", "/console/sign-in", url.Values{"token": {token}}, want)
}

// TestConsoleOfARealBroker goes through the console as an administrator does, over TLS.
func TestConsoleOfARealBroker(t *testing.T) {
	s := newServed(t, nil)
	s.approve()
	s.wantSecret("before anybody looks")
	s.tpm.Measure(9, []byte("init=/bin/sh"))
	if _, err := s.fetch("resource/default/key/1"); err == nil {
		t.Fatal("a changed guest gets the secret")
	}
	b := s.browser()
	b.page("/console", http.StatusSeeOther)
	b.signIn("cloister-admin-wrong", http.StatusUnauthorized)
	b.signIn(s.token(), http.StatusSeeOther)
	b.page("/console", http.StatusOK)

	// The denied guest and why.
	list := b.page("/console/attestations", http.StatusOK)
	links := regexp.MustCompile(`/console/decisions/([0-9a-f]{32})`).FindAllStringSubmatch(list, -1)
	if len(links) < 2 {
		t.Fatalf("there are %d attestations on the page", len(links))
	}
	denied := links[0][1]
	explained := b.page("/console/decisions/"+denied, http.StatusOK)
	for _, want := range []string{"tpm_pcr09", "What differs"} {
		if !strings.Contains(explained, want) {
			t.Errorf("the explanation lacks %q", want)
		}
	}
	refusals := b.page("/console/refusals", http.StatusOK)
	if !strings.Contains(refusals, "default/key/1") {
		t.Error("the refused request is not listed")
	}

	// A policy that asks for nothing is tried on the denied guest, and changes nothing.
	generous := "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2, \"executables\": 3, \"configuration\": 2}\n"
	_, tried := b.submit("/console/policies/attestation/default_cpu", "/console/policies/attestation/default_cpu",
		url.Values{"text": {generous}, "action": {"dry-run"}, "record": {denied}}, http.StatusOK)
	if !strings.Contains(tried, "Nothing was saved") || !strings.Contains(tried, "affirming") {
		t.Errorf("the dry run says %.600s", between(t, tried, "<form", "<textarea"))
	}
	if _, err := s.fetch("resource/default/key/1"); err == nil {
		t.Error("a dry run put the policy in force")
	}

	// A secret goes in and does not come out.
	const added = "added-in-the-console-7391"
	location, _ := b.submit("/console/resources", "/console/resources", url.Values{"path": {"default/db/password"}, "kind": {"text"}, "text": {added}},
		http.StatusSeeOther)
	if body := b.page(location, http.StatusOK); !strings.Contains(body, "default/db/password") {
		t.Error("the resource is not listed")
	}
	stored, err := s.admin.ListResources(t.Context())
	if err != nil || len(stored) != 2 {
		t.Errorf("resources: %v, %v", stored, err)
	}
	// A form of nobody's session does nothing.
	if res, _ := b.post(b.http, "/console/resources", url.Values{"csrf": {"x"}, "path": {"a/b/c"}, "kind": {"text"}, "text": {"x"}}); res.StatusCode != 403 {
		t.Errorf("a foreign form: %d", res.StatusCode)
	}

	_, made := b.submit("/console/tenants", "/console/tenants", url.Values{"name": {"team-a"}, "resources": {"10"}}, http.StatusOK)
	token := regexp.MustCompile(`cloister-tenant-[A-Za-z0-9_-]{43}`).FindString(made)
	if token == "" {
		t.Errorf("no token of the new tenant is shown: %.400s", made)
	}
	if body := b.page("/console/tenants", http.StatusOK); !strings.Contains(body, "team-a") || strings.Contains(body, token) {
		t.Error("the tenant is not listed, or with its token")
	}
	if code, _ := s.do(s.http(), "GET", "/ns/team-a/cloister/v1/status", "", "Authorization: Bearer "+token); code != 200 {
		t.Errorf("the tenant's token: %d", code)
	}
	for _, page := range []string{"/console/policies", "/console/policies/resource", "/console/references", "/console/audit"} {
		b.page(page, http.StatusOK)
	}
	b.page("/console/nothing", http.StatusNotFound)

	seen := b.seen.String()
	for what, secret := range map[string]string{"a secret": secretText, "the added secret": added, "the admin token": s.token()} {
		if strings.Contains(seen, secret) {
			t.Errorf("a page shows %s", what)
		}
	}
	entries, err := s.admin.Audit(t.Context(), 0)
	s.must(err)
	events := map[string]int{}
	for _, e := range entries {
		if strings.Contains(e.Reason, "console") || strings.HasPrefix(e.Event, "console") {
			events[e.Event+" "+e.Decision]++
		}
		if strings.Contains(e.Reason+e.Subject, added) {
			t.Error("the audit log has the secret")
		}
	}
	for _, want := range []string{"console-sign-in allow", "console-sign-in deny", "resource-write allow", "tenant-create allow"} {
		if events[want] == 0 {
			t.Errorf("the audit log has no %q of the console: %v", want, events)
		}
	}
}

// TestConsoleOfARole: an administrator of an identity provider sees and does in the console what the rules allow, and no more.
func TestConsoleOfARole(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newServed(t, func(dir string, c *config.Config) {
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		file := certtest.Write(t, filepath.Join(dir, "idp.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		c.Admin.Mode = config.AdminJWT
		c.Admin.IdentityProviders = []config.IdentityProvider{{Issuer: "idp", Audience: "KBS", PublicKey: file}}
		c.Admin.Rules = []config.AdminRule{
			{Role: "team-a", Paths: "/cloister/v1/resources", Methods: []string{"GET"}}, {Role: "team-a", Paths: "/kbs/v0/resource/team-a/.*"},
			{Role: "admin", Paths: "/.*"},
		}
	})
	token := func(role string) string {
		t.Helper()
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
		s.must(err)
		claims, err := json.Marshal(map[string]any{"iss": "idp", "aud": "KBS", "sub": "ann", "role": role, "exp": time.Now().Add(time.Hour).Unix()})
		s.must(err)
		jws, err := signer.Sign(claims)
		s.must(err)
		text, err := jws.CompactSerialize()
		s.must(err)
		return text
	}
	b := s.browser()
	b.signIn(token("nobody"), http.StatusUnauthorized)
	b.signIn(token("team-a"), http.StatusSeeOther)
	resources := b.page("/console/resources", http.StatusOK)
	for _, page := range []string{"/console/audit", "/console/attestations", "/console/tenants", "/console/policies", "/console/references"} {
		b.page(page, http.StatusForbidden)
		if strings.Contains(resources, `href="`+page+`"`) {
			t.Errorf("the menu offers %s", page)
		}
	}
	form := func(path string) url.Values { return url.Values{"path": {path}, "kind": {"random"}, "size": {"32"}} }
	b.submit("/console/resources", "/console/resources", form("team-a/key/1"), http.StatusSeeOther)
	b.submit("/console/resources", "/console/resources", form("team-b/key/1"), http.StatusForbidden)
	b.submit("/console/resources", "/console/resources", form("team-a/../key"), http.StatusUnprocessableEntity)
	code, list := s.do(s.http(), "GET", "/cloister/v1/resources", "", "Authorization: Bearer "+token("admin"))
	if code != 200 || !strings.Contains(list, "team-a/key/1") || strings.Contains(list, "team-b") {
		t.Errorf("resources: %d %s", code, list)
	}
}
