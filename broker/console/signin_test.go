package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/console/consoletest"
)

func TestSignIn(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w)
	if code := b.get("/console/resources?prefix=shop"); code != http.StatusSeeOther {
		t.Errorf("without a session: %d", code)
	}
	r := request("/console/sign-in", url.Values{"token": {"wrong"}})
	if code := b.do(r).StatusCode; code != http.StatusUnauthorized || b.cookie != nil || strings.Contains(b.last, "wrong\"") {
		t.Errorf("a wrong token: %d, cookie %v", code, b.cookie)
	}
	b.has("not one of this broker")
	for next, want := range map[string]string{
		"/console/audit?before=3": "/console/audit?before=3", "https://evil.example/console/": "/console", "//evil.example/console/": "/console",
		"/console/../kbs": "/console", "/console/\\evil": "/console", "javascript:alert(1)": "/console", "/console": "/console",
		"/consolex": "/console",
	} {
		w.Wait(time.Minute)
		resp := b.do(request("/console/sign-in", url.Values{"token": {" Bearer " + consoletest.Token + "\n"}, "next": {next}}))
		if got := resp.Header.Get("Location"); got != want {
			t.Errorf("next %q leads to %q, want %q", next, got, want)
		}
	}
	c := b.cookie
	if c.Name != "__Host-cloister-console" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" ||
		c.Domain != "" {
		t.Errorf("cookie: %v", c)
	}
	b.get("/console/")
	if code := b.post("/console/sign-out", url.Values{}); code != http.StatusSeeOther || b.cookie != nil {
		t.Errorf("signing out: %d, %v", code, b.cookie)
	}
	b.cookie = &http.Cookie{Name: c.Name, Value: c.Value}
	if code := b.get("/console/"); code != http.StatusSeeOther {
		t.Errorf("the cookie is good after signing out: %d", code)
	}
}

func TestSignInIsLimited(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w)
	codes := map[int]int{}
	for range 20 {
		codes[b.do(request("/console/sign-in", url.Values{"token": {"guess"}})).StatusCode]++
	}
	if codes[401] != 5 || codes[429] != 15 {
		t.Errorf("20 attempts were answered %v", codes)
	}
	w.Wait(time.Minute)
	b.signIn(consoletest.Token)
}

func TestSessionEnds(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	for range 2 { // polling does not keep it
		w.Wait(14 * time.Minute)
		if code := b.get("/console/live"); code != http.StatusOK {
			t.Errorf("live: %d", code)
		}
	}
	w.Wait(3 * time.Minute)
	if code := b.get("/console/live"); code != http.StatusUnauthorized {
		t.Errorf("live after the session's end: %d", code)
	}
	if code := b.get("/console/audit"); code != http.StatusSeeOther {
		t.Errorf("idle session: %d", code)
	}
	if code := b.post("/console/resources/delete", url.Values{"path": {"shop/api/token"}}); code != http.StatusUnauthorized {
		t.Errorf("a change with a session that is over: %d", code)
	}
	w.Wait(time.Hour)
	b.signIn(consoletest.Token)
	for range 24 {
		w.Wait(20 * time.Minute)
		b.get("/console/audit")
	}
	if code := b.get("/console/audit"); code != http.StatusSeeOther {
		t.Errorf("a session of eight hours: %d", code)
	}
}
