package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/test/evidence"
)

// TestCollateralJourney: what recorded evidence takes is fetched from a server, carried in a bundle, imported, and found there.
func TestCollateralJourney(t *testing.T) {
	read := func(name string) []byte { return evidence.Read(t, name) }
	var asked []string
	kds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		switch r.URL.Path {
		case "/vcek/v1/Turin/cert_chain":
			w.Write(append(read("amd-sev-snp/ca/turin/ask.pem"), read("amd-sev-snp/ca/turin/ark.pem")...))
		case "/vcek/v1/Turin/crl":
			w.Write(read("synthetic/snp/ca-turin/crl.der"))
		case "/vcek/v1/Turin/3b42092f69c656d3":
			w.Write(read("amd-sev-snp/turin-v5/vcek.der"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer kds.Close()
	dir := t.TempDir()
	cloister := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		if got := run(context.Background(), append([]string{"collateral"}, args...), nil, &out, &errs); got != want {
			t.Fatalf("cloister collateral %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, want, out.String(), errs.String())
		}
		return out.String(), errs.String()
	}
	report := filepath.Join(evidence.Dir(t), "amd-sev-snp", "turin-v5", "report.bin")
	tar := filepath.Join(dir, "b.tar.gz")
	out, _ := cloister(0, "fetch", "--evidence", report, "--kds-url", kds.URL, "--out", tar)
	for _, want := range []string{"3 documents", "amd-vcek", "Turin/3b42092f69c656d3/bl01_tee00_snp02_ucode71_fmc00", "AMD KDS"} {
		if !strings.Contains(out, want) {
			t.Errorf("fetch says nothing of %q:\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if n := len([]rune(line)); n > 120 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	// The same by the chip's numbers.
	cloister(0, "fetch", "--snp-chip", "3b42092f69c656d3", "--snp-line", "Turin", "--snp-tcb", "0001000200000047", "--kds-url", kds.URL,
		"--out", filepath.Join(dir, "by-chip"))
	if len(asked) != 6 {
		t.Errorf("asked for %v", asked)
	}
	data := t.TempDir()
	cloister(0, "import", tar, filepath.Join(dir, "by-chip"), "--data", data)
	out, _ = cloister(0, "list", "--data", data, "--json")
	var list []collateralItem
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 3 {
		t.Fatalf("listed %s (%v)", out, err)
	}
	for _, it := range list {
		if it.Platform != "amd" || it.ValidUntil == nil || it.Source != "AMD KDS" {
			t.Errorf("listed %+v", it)
		}
	}
	kds.Close()
	_, errs := cloister(1, "fetch", "--evidence", report, "--kds-url", kds.URL, "--out", filepath.Join(dir, "none"))
	if !strings.Contains(errs, "AMD KDS: GET "+kds.URL) || !strings.Contains(errs, "hint: ") {
		t.Errorf("an outage says %s", errs)
	}
}
