package console_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/console/consoletest"
)

func TestResources(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	const value = "value-that-nobody-may-see"
	if code := b.post("/console/resources", url.Values{"path": {"shop/new/x"}, "kind": {"text"},
		"text": {value + "\r\nline"}}); code != http.StatusSeeOther {
		t.Fatalf("storing: %d %s", code, b.last)
	}
	b.get("/console/resources?prefix=shop")
	b.has("shop/new/x", "is stored (30 B)")
	for _, form := range []url.Values{
		{"path": {"shop/../x"}, "kind": {"text"}, "text": {value}}, {"path": {"shop/new/x"}, "kind": {"text"}, "text": {""}},
		{"path": {"shop/new/x"}, "kind": {"random"}, "size": {"3"}}, {"path": {"shop/new/x"}, "kind": {"file"}}, {"path": {"shop/new/x"},
			"kind": {"else"}, "text": {value}},
	} {
		if code := b.post("/console/resources", form); code != http.StatusUnprocessableEntity {
			t.Errorf("%v: %d", form, code)
		}
		b.has("Nothing was stored")
	}
	if code := b.post("/console/resources", url.Values{"path": {"shop/new/r"}, "kind": {"random"},
		"size": {"64"}}); code != http.StatusSeeOther {
		t.Errorf("random: %d", code)
	}
	if strings.Contains(b.whole.String(), value) {
		t.Error("a page has the value of a secret")
	}
	if code := b.post("/console/resources/delete", url.Values{"path": {"shop/new/x"}}); code != http.StatusSeeOther {
		t.Errorf("deleting: %d", code)
	}
	if code := b.post("/console/resources/delete", url.Values{"path": {"shop/new/x"}}); code != http.StatusNotFound {
		t.Errorf("deleting twice: %d", code)
	}
	w.BreakAudit(errors.New("the disk is full"))
	if code := b.post("/console/resources/delete", url.Values{"path": {"shop/new/r"}}); code != http.StatusInternalServerError {
		t.Errorf("without an audit log: %d", code)
	}
	if infos, err := w.Resources.List(t.Context(), "shop/new", "", 0); err != nil || len(infos) != 1 || infos[0].Versions[0].Size != 64 {
		t.Errorf("stored: %v, %v", infos, err)
	}
}

func TestTenantsAndReferences(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	if code := b.post("/console/tenants", url.Values{"name": {"new"}, "resources": {"10"}, "mib": {"1.5"},
		"requests": {""}}); code != http.StatusOK {
		t.Fatalf("making a tenant: %d %s", code, b.last)
	}
	b.has(consoletest.TenantToken)
	b.get("/console/tenants")
	if b.has("new", "1.5 MiB"); strings.Contains(b.last, consoletest.TenantToken) {
		t.Error("the token of a tenant is shown twice")
	}
	for _, form := range []url.Values{{"name": {"new"}}, {"name": {"a b"}}, {"name": {"x"}, "resources": {"-1"}}, {"name": {"x"},
		"mib": {"NaN"}}, {"name": {"x"}, "resources": {"1.5"}}} {
		if code := b.post("/console/tenants", form); code != http.StatusUnprocessableEntity {
			t.Errorf("%v: %d", form, code)
		}
	}
	if code := b.post("/console/tenants/delete", url.Values{"name": {"new"}}); code != http.StatusSeeOther {
		t.Errorf("deleting a tenant: %d", code)
	}

	measurement := strings.Repeat("1234567890", 6) + "1234"
	if code := b.post("/console/references", url.Values{"name": {"mr_td"}, "values": {measurement + "\r\n42\r\n\r\ntext"},
		"group": {"g"}, "mode": {"add"}}); code != 303 {
		t.Fatalf("registering: %d %s", code, b.last)
	}
	records, err := w.Parts.References.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.Name == "mr_td" && (string(r.Value) != `["`+measurement+`",42,"text"]` || r.By != "ann") {
			t.Errorf("registered %s by %s", r.Value, r.By)
		}
	}
	b.get("/console/references?group=g")
	b.has(measurement, "in 365 days")
	for _, tc := range []struct {
		form url.Values
		want int
	}{
		{url.Values{"name": {"mr_td"}, "value": {"42"}}, 303}, {url.Values{"name": {"mr_td"}, "value": {"42"}}, 404},
		{url.Values{"group": {"g"}}, 303}, {url.Values{"group": {"g"}}, 404}, {url.Values{"name": {"tpm_pcr00"}}, 303}, {url.Values{}, 404},
	} {
		if code := b.post("/console/references/remove", tc.form); code != tc.want {
			t.Errorf("removing %v: %d, want %d", tc.form, code, tc.want)
		}
	}
	if code := b.post("/console/references", url.Values{"name": {"n"}, "values": {"null"},
		"mode": {"add"}}); code != http.StatusUnprocessableEntity {
		t.Errorf("null: %d", code)
	}
}
