package console_test

import (
	"bytes"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/console"
	"github.com/cloister/cloister/broker/console/consoletest"
)

// browser is a client that keeps cookies as a browser does.
type browser struct {
	t      *testing.T
	w      *consoletest.World
	cookie *http.Cookie
	// last is the body of the last answer, whole all bodies so far.
	last  string
	whole strings.Builder
	csrf  string
}

func newBrowser(t *testing.T, w *consoletest.World) *browser { return &browser{t: t, w: w} }

func (b *browser) do(r *http.Request) *http.Response {
	b.t.Helper()
	if b.cookie != nil {
		r.AddCookie(b.cookie)
	}
	rec := httptest.NewRecorder()
	b.w.Console.ServeHTTP(rec, r)
	resp := rec.Result()
	for _, c := range resp.Cookies() {
		b.cookie = c
		if c.MaxAge < 0 {
			b.cookie = nil
		}
	}
	b.last = rec.Body.String()
	b.whole.WriteString(b.last)
	if m := regexp.MustCompile(`name="csrf" value="([^"]*)"`).FindStringSubmatch(b.last); m != nil {
		b.csrf = html.UnescapeString(m[1])
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && resp.StatusCode != http.StatusSeeOther {
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp,
			"frame-ancestors 'none'") {
			b.t.Errorf("%s %s: Content-Security-Policy is %q", r.Method, r.URL, csp)
		}
	}
	return resp
}

func (b *browser) get(path string) int {
	b.t.Helper()
	return b.do(httptest.NewRequest(http.MethodGet, path, nil)).StatusCode
}

func request(path string, form url.Values) *http.Request {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

// post sends a form of the page that was seen last.
func (b *browser) post(path string, form url.Values) int {
	b.t.Helper()
	form.Set("csrf", b.csrf)
	return b.do(request(path, form)).StatusCode
}

func (b *browser) signIn(token string) *browser {
	b.t.Helper()
	if code := b.do(request("/console/sign-in", url.Values{"token": {token}})).StatusCode; code != http.StatusSeeOther {
		b.t.Fatalf("signing in: %d: %s", code, b.last)
	}
	b.get("/console/nowhere") // a page with the form's token, for every role
	return b
}

func (b *browser) has(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		if !strings.Contains(b.last, text) {
			b.t.Errorf("the page lacks %q", text)
		}
	}
}

func allPages(w *consoletest.World) []string {
	return []string{
		"/console", "/console/", "/console/attestations", "/console/attestations?show=warning", "/console/refusals",
		"/console/decisions/" + w.Good,
		"/console/decisions/" + w.Bad, "/console/decisions/" + w.Bitten, "/console/decisions/" + w.Refused, "/console/resources",
		"/console/resources?prefix=shop", "/console/resources/delete?path=shop/api/token", "/console/policies",
		"/console/policies/attestation/default_cpu", "/console/policies/attestation/new_cpu", "/console/policies/resource",
		"/console/references", "/console/references?name=pcr04&group=shop", "/console/references/remove?name=tpm_pcr04", "/console/tenants",
		"/console/tenants/delete?name=shop", "/console/audit", "/console/live",
	}
}

// TestPages opens every page and looks for what must be on none.
func TestPages(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	for _, path := range allPages(w) {
		if code := b.get(path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		if strings.HasSuffix(b.last, "</html>\n") && !strings.Contains(b.last, `class="skip"`) {
			t.Errorf("%s has no skip link", path)
		}
	}
	all := b.whole.String()
	for _, bad := range []string{
		"<script>alert", "<img src=x", "\u202e", consoletest.Token, consoletest.Secret, b.cookie.Value, " style=", " onclick=",
		"javascript:", "ZgotmplZ",
	} {
		if strings.Contains(all, bad) {
			at := strings.Index(all, bad)
			t.Errorf("pages have %q: …%q…", bad, all[max(0, at-80):min(len(all), at+80)])
		}
	}
	if !strings.Contains(all, "&lt;script&gt;alert") {
		t.Error("the hostile guest's text is nowhere")
	}
}

func TestExplanation(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	record, err := w.Decisions.Get(t.Context(), w.Bad)
	if err != nil {
		t.Fatal(err)
	}
	finding := record.Parts[0].Findings[0]
	b.get("/console/decisions/" + w.Bad)
	b.has("tpm.pcr09", "is not an approved value", strings.Trim(string(finding.Got), `"`), "/console/references?name=tpm_pcr09",
		"warning", "Approve this value")
	for _, accepted := range strings.Split(strings.Trim(string(finding.Expected), "[]"), ",") {
		b.has(strings.Trim(accepted, `"`))
	}
	b.get("/console/decisions/" + w.Refused)
	b.has("shop/luks/volume-0", "the attestation was warning", "every_part_affirming", "tpm.pcr09")
	b.get("/console/attestations?show=affirming")
	if b.has(w.Good); strings.Contains(b.last, w.Bad) {
		t.Error("the filter shows what it should not")
	}
	for path, want := range map[string]int{
		"/console/decisions/" + strings.Repeat("0", 32): 404, "/console/decisions/zz": 404, "/console/attestations?show=x": 404,
		"/console/attestations?before=x": 404, "/console/refusals?before=" + w.Refused: 200, "/console/audit?before=0": 404,
		"/console/audit?before=99999": 404, "/console/audit?before=3": 200, "/console/resources?prefix=../x": 400,
		"/console/static/console.css": 200,
		"/console/static/..%2fdoc.go": 404, "/console/static/none.css": 404, "/console/policies/attestation?id=a/b": 400,
	} {
		if code := b.get(path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}

func TestForgedForms(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	other := newBrowser(t, w).signIn(consoletest.Token)
	form := func(csrf string) url.Values { return url.Values{"csrf": {csrf}, "path": {"shop/api/token"}} }
	for name, change := range map[string]func() *http.Request{
		"no token":           func() *http.Request { return request("/console/resources/delete", form("")) },
		"token of another":   func() *http.Request { return request("/console/resources/delete", form(other.csrf)) },
		"token in the query": func() *http.Request { return request("/console/resources/delete?csrf="+b.csrf, form("")) },
		"sign-out without":   func() *http.Request { return request("/console/sign-out", form("")) },
		"another site": func() *http.Request {
			r := request("/console/resources/delete", form(b.csrf))
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			return r
		},
		"another of our site": func() *http.Request {
			r := request("/console/resources/delete", form(b.csrf))
			r.Header.Set("Sec-Fetch-Site", "same-site")
			return r
		},
		"an old browser": func() *http.Request {
			r := request("/console/resources/delete", form(b.csrf))
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "https://evil.example")
			return r
		},
		"sign-in from elsewhere": func() *http.Request {
			r := request("/console/sign-in", url.Values{"token": {consoletest.Token}})
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			return r
		},
	} {
		if code := b.do(change()).StatusCode; code != http.StatusForbidden {
			t.Errorf("%s: %d, want 403", name, code)
		}
	}
	if infos, err := w.Resources.List(t.Context(), "shop/api", "", 0); err != nil || len(infos) != 1 {
		t.Errorf("the resource is gone: %v, %v", infos, err)
	}
	r := httptest.NewRequest(http.MethodPost, "/console/resources", strings.NewReader(`{"csrf":1}`))
	r.Header.Set("Content-Type", "application/json")
	if code := b.do(r).StatusCode; code != http.StatusUnsupportedMediaType {
		t.Errorf("JSON: %d", code)
	}
	if code := b.post("/console/resources", url.Values{"path": {"a/b/c"}, "text": {strings.Repeat("x",
		3<<20)}}); code != http.StatusRequestEntityTooLarge {
		t.Errorf("a form of 3 MiB: %d", code)
	}
}

// TestRoles tries every action as somebody who may only read.
func TestRoles(t *testing.T) {
	w := consoletest.New(t)
	policy, err := w.Policies.Text(t.Context(), "default_cpu")
	if err != nil {
		t.Fatal(err)
	}
	before, _ := w.Audit.Head()
	b := newBrowser(t, w).signIn(consoletest.ReaderToken)
	actions := map[string]url.Values{
		"/console/resources":                        {"path": {"shop/new/x"}, "kind": {"text"}, "text": {"v"}},
		"/console/resources/delete":                 {"path": {"shop/api/token"}},
		"/console/references":                       {"name": {"n"}, "values": {"v"}, "mode": {"add"}},
		"/console/references/remove":                {"name": {"tpm_pcr04"}},
		"/console/tenants":                          {"name": {"new"}},
		"/console/tenants/delete":                   {"name": {"shop"}},
		"/console/policies/attestation/default_cpu": saving(policy, policy+"\n# more\n"),
		"/console/policies/resource": {"action": {"save"}, "text": {"package policy\n"},
			"reviewed": {sum("package policy\n")}, "stored": {"x"}},
	}
	for path, form := range actions {
		want := http.StatusForbidden
		if path == "/console/policies/resource" {
			want = http.StatusConflict // shown again, as it is older than what is stored
		}
		if code := b.post(path, form); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	if infos, _ := w.Resources.List(t.Context(), "shop", "", 0); len(infos) != 3 {
		t.Errorf("resources changed: %v", infos)
	}
	entries, err := w.Audit.Since(t.Context(), before, 1000)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, e := range entries {
		if e.Decision == "deny" {
			refused++
		}
	}
	if refused != len(actions)-1 {
		t.Errorf("%d refusals are recorded, want %d", refused, len(actions)-1)
	}

	// A role for one repository sees the sections it may, and writes there only.
	team := newBrowser(t, w).signIn(consoletest.WriterToken)
	if code := team.get("/console/"); code != http.StatusForbidden || strings.Contains(team.last, `href="/console/audit"`) {
		t.Errorf("the overview of a role without it: %d", code)
	}
	team.has(`href="/console/resources"`)
	for path, want := range map[string]int{"team-a/x/y": 303, "team-b/x/y": 403, "team-a/../x": 422} {
		if code := team.post("/console/resources", url.Values{"path": {path}, "kind": {"text"}, "text": {"v"}}); code != want {
			t.Errorf("writing %s: %d, want %d", path, code, want)
		}
	}
	// A name cannot reach what a rule did not mean.
	admin := newBrowser(t, w).signIn(consoletest.Token)
	if code := admin.post("/console/references/remove", url.Values{"name": {"../../cloister/v1/x"}}); code != http.StatusForbidden {
		t.Errorf("a name with dots: %d", code)
	}
}

func TestCertificate(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w)
	w.Certify(adminauth.Call{Bearer: consoletest.ReaderToken}) // stands for what names a certificate
	if code := b.get("/console/audit"); code != http.StatusOK {
		t.Fatalf("with a certificate: %d", code)
	}
	b.has("by client certificate", "rob (role reader)")
	if code := b.post("/console/resources/delete", url.Values{"path": {"shop/api/token"}}); code != http.StatusForbidden {
		t.Errorf("the role of a certificate: %d", code)
	}
	w.Certify(adminauth.Call{})
	if code := b.get("/console/audit"); code != http.StatusSeeOther {
		t.Errorf("the session without its certificate: %d", code)
	}
	w.Certify(adminauth.Call{Bearer: "a certificate of nobody"})
	if code := b.get("/console/audit"); code != http.StatusSeeOther {
		t.Errorf("a certificate of nobody: %d", code)
	}
}

func TestBrokenAuditLogIsShown(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	b.get("/console/audit")
	b.has("is unbroken", "console-sign-in")
	raw, err := os.ReadFile(w.AuditFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.AuditFile, bytes.Replace(raw, []byte(`"decision":"deny"`), []byte(`"decision":"okay"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	b.get("/console/audit")
	b.has("The hash chain is broken", "was changed")
}

func TestCookieWithoutTLS(t *testing.T) {
	w := consoletest.New(t)
	parts := w.Parts
	parts.Secure, parts.Resources, parts.Tenants, parts.DryRun, parts.Caller = false, nil, nil, nil, nil
	var err error
	if w.Console, err = console.New(parts); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t, w).signIn(consoletest.Token)
	if c := b.cookie; c.Name != "cloister-console" || c.Path != "/console" || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode {
		t.Errorf("cookie: %v", c)
	}
	// What the broker does not have is not offered.
	for path, want := range map[string]int{"/console/resources": 404, "/console/tenants": 404,
		"/console/policies/attestation/default_cpu": 200} {
		if code := b.get(path); code != want || strings.Contains(b.last, `value="dry-run"`) || strings.Contains(b.last,
			`href="/console/tenants"`) {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}
