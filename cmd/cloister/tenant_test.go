package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// TestTenants makes, lists and removes a tenant, and sees its token in a file of its owner only.
func TestTenants(t *testing.T) {
	const token, second = "the-first-token-0123456789", "the-second-token-0123456789"
	var asked []string
	fail := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		switch {
		case fail:
			http.Error(w, "the broker is full", http.StatusInternalServerError)
		case r.Method == "GET":
			w.Write([]byte(`[{"name":"team-a","created":"2026-01-01T00:00:00Z","quota":{"resources":10},"usage":{"resources":3,"bytes":99}}]`))
		case strings.HasSuffix(r.URL.Path, "/token"):
			w.Write([]byte(`{"name":"team-a","admin_token":"` + second + `"}`))
		case r.Method == "POST":
			w.Write([]byte(`{"name":"team-a","admin_token":"` + token + `"}`))
		}
	}))
	defer srv.Close()
	t.Chdir(t.TempDir())
	check := func(file, want string) {
		t.Helper()
		raw, err := os.ReadFile(file)
		if err != nil || string(raw) != want+"\n" {
			t.Errorf("%s holds %q, %v", file, raw, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s: %v, %v", file, info.Mode(), err)
		}
	}
	out := cli(t, exitDone, "", "tenant", "create", "--kbs", srv.URL, "--max-resources", "10", "--requests-per-second", "2.5", "team-a")
	contains(t, out, "team-a.admin-token")
	if strings.Contains(out, token) {
		t.Error("the token is shown")
	}
	check("team-a.admin-token", token)
	asked = nil
	contains(t, cli(t, exitRefused, "", "tenant", "create", "--kbs", srv.URL, "team-a"), "exists already", "hint: name another file")
	contains(t, cli(t, exitRefused, "", "tenant", "create", "--kbs", srv.URL, "--out", "nosuch/x", "team-a"), "preparing the file")
	contains(t, cli(t, exitUsage, "", "tenant", "rm", "--kbs", srv.URL, "team-a"), "hint: if that is meant: --confirm team-a")
	contains(t, cli(t, exitUsage, "", "tenant", "create", "--kbs", srv.URL, "--max-bytes", "-1", "x"), "negative")
	contains(t, cli(t, exitRefused, "", "tenant", "token", "--kbs", srv.URL, "--out", "t", "../up"), "tenant name is")
	if asked != nil {
		t.Errorf("the broker was asked for %q", asked)
	}
	cli(t, exitDone, "", "tenant", "token", "--kbs", srv.URL, "team-a")
	check("team-a.admin-token", second)
	if out := cli(t, exitDone, "", "tenant", "token", "--kbs", srv.URL, "--show", "team-a"); out != second+"\n" {
		t.Errorf("shown is %q", out)
	}
	contains(t, cli(t, exitDone, "", "tenant", "list", "--kbs", srv.URL), "3 of 10", "99")
	cli(t, exitDone, "", "tenant", "rm", "--kbs", srv.URL, "--confirm", "team-a", "team-a")
	want := []string{"POST /cloister/v1/tenants/team-a/token", "POST /cloister/v1/tenants/team-a/token", "GET /cloister/v1/tenants",
		"DELETE /cloister/v1/tenants/team-a?confirm=team-a"}
	if strings.Join(asked, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked %q, want %q", asked, want)
	}
	asked = nil
	cli(t, exitDone, "", "tenant", "create", "--kbs", srv.URL, "--max-resources", "10", "--max-bytes", "5", "--out", "b", "team-a")
	if asked[0] != `POST /cloister/v1/tenants {"name":"team-a","quota":{"resources":10,"bytes":5}}` {
		t.Errorf("asked %q", asked)
	}
	asked = nil
	contains(t, cli(t, exitUsage, "", "tenant", "quota", "--kbs", srv.URL, "team-a"), "no bound was given")
	contains(t, cli(t, exitUsage, "", "tenant", "quota", "--kbs", srv.URL, "--max-sessions", "-1", "team-a"), "negative")
	contains(t, cli(t, exitRefused, "", "tenant", "quota", "--kbs", srv.URL, "--max-sessions", "1", "team-b"), "there is no tenant")
	cli(t, exitDone, "", "tenant", "quota", "--kbs", srv.URL, "--max-sessions", "7", "team-a")
	cli(t, exitDone, "", "tenant", "quota", "--kbs", srv.URL, "--max-resources", "0", "--max-policies", "2", "team-a")
	want = []string{"GET /cloister/v1/tenants", "GET /cloister/v1/tenants", `POST /cloister/v1/tenants/team-a/quota {"resources":10,"sessions":7}`,
		"GET /cloister/v1/tenants", `POST /cloister/v1/tenants/team-a/quota {"policies":2}`}
	if strings.Join(asked, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked %q, want %q", asked, want)
	}
	fail = true
	contains(t, cli(t, exitRefused, "", "tenant", "create", "--kbs", srv.URL, "--out", "c", "team-b"), "the broker is full")
	contains(t, cli(t, exitRefused, "", "tenant", "token", "--kbs", srv.URL, "team-a"), "the broker is full")
	check("team-a.admin-token", second) // a failure takes nothing away
	files, err := os.ReadDir(".")
	if err != nil || len(files) != 2 {
		t.Errorf("left are %v, %v", files, err)
	}
}
