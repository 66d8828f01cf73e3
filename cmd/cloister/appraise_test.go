package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/test/evidence"
)

// TestAppraise makes dry runs of evidence of real hardware, of a record, and of one that lacks what the policy reads.
func TestAppraise(t *testing.T) {
	file := filepath.Join(evidence.Dir(t), "amd-sev-snp", "coco-evidence-v3.json")
	snp := []string{"appraise", "--dry-run", "--tee", "snp", "--at", "2026-06-01T00:00:00Z", "--insecure-no-revocation"}
	text := cli(t, exitRefused, "", append(snp, file)...)
	contains(t, text, "WOULD NOT BE APPROVED", "snp.measurement", "NO  executables", "ok  configuration  snp.policy_debug_allowed",
		"do        cloister refvalue add snp_launch_measurement 6a65", "no reference values were given", "may be a replay")
	// What it says is missing is registered: then it is approved.
	var result dryrun.Result
	if err := json.Unmarshal([]byte(cli(t, exitRefused, "", append(snp, "--json", file)...)), &result); err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	for _, f := range result.Parts[0].Findings {
		if f.Reference != "" && f.Got != nil && !single(f) {
			values[f.Reference] = []json.RawMessage{f.Got}
		}
	}
	raw, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	approved := saved(t, string(raw))
	contains(t, cli(t, exitDone, "", append(snp, "--values", approved, file)...), "WOULD BE APPROVED: every part is affirming", "ok  executables")
	contains(t, cli(t, exitRefused, "", append(snp, "--values", approved, "--nonce", strings.Repeat("00", 64), file)...), "not genuine, or not bound")
	const lax = "package policy\nimport rego.v1\ndefault hardware := 97\nhardware := 2 if input.snp.measurement\ntrust_claims := {\"hardware\": hardware}\n"
	policy := saved(t, lax)
	contains(t, cli(t, exitDone, "", append(snp, "--policy", "cpu="+policy, file)...), "by policy saved")
	contains(t, cli(t, exitUsage, "", append(snp, "--policy", policy, "--policy", "cpu="+policy, file)...), "two policies")
	contains(t, cli(t, exitRefused, "", append(snp, "--policy", saved(t, "package x"), file)...), "policy is not usable")

	record := saved(t, refusedRecord)
	contains(t, cli(t, exitRefused, "", "appraise", "--dry-run", record), "not verified again")
	short := saved(t, `{"kind":"attestation","decision":"allow","parts":[{"name":"cpu0","tee":"tdx","evidence":{"init_data":"88","tdx":{"tcb_status":"UpToDate","cloister.shortened":true}}}]}`)
	contains(t, cli(t, exitUnknown, "", "appraise", "--dry-run", short), "CANNOT TELL: the record lacks what the policy reads: ", "tdx.quote.body.mr_td", "left out of the record")
	for _, args := range [][]string{
		{"appraise", file}, {"appraise", "--dry-run", file}, {"appraise", "--dry-run", "--tee", "moon", file}, {"appraise", "--dry-run", "--at", "soon", record},
		{"appraise", "--dry-run"},
	} {
		contains(t, cli(t, exitUsage, "", args...), "error: ")
	}
	contains(t, cli(t, exitRefused, "", "appraise", "--dry-run", "/nonexistent"), "no such file")
	contains(t, cli(t, exitRefused, "", "appraise", "--dry-run", "--values", saved(t, "x"), record), "hint: make the file with")
}

// TestAppraiseThere lets a broker make the dry run.
func TestAppraiseThere(t *testing.T) {
	var got dryrun.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/audit") {
			entries := `[{"seq":1,"request_id":"` + strings.Repeat("1", 32) + `","tee":"tpm"}]`
			if r.URL.Query().Get("since") != "0" {
				entries = "[]"
			}
			_, _ = w.Write([]byte(entries))
			return
		}
		if strings.HasSuffix(r.URL.Path, "/reference-value") {
			_, _ = w.Write([]byte("[]"))
			return
		}
		if strings.Contains(r.URL.Path, "/attestations/") {
			_, _ = w.Write([]byte(refusedRecord))
			return
		}
		got = dryrun.Request{}
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.Method != "POST" || r.URL.Path != "/ns/team-a/cloister/v1/appraisals/dry-run" {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		w.Write([]byte(`{"status":"affirming","parts":[{"name":"cpu0","tee":"tpm","status":"affirming","policy":"p","vector":{"hardware":2},"checks":[]}]}`))
	}))
	defer srv.Close()
	broker := []string{"appraise", "--dry-run", "--kbs", srv.URL + "/ns/team-a/"}
	id := strings.Repeat("1", 32)
	policy := saved(t, "package policy")
	cli(t, exitDone, "", append(broker, "--policy", "gpu="+policy, "--values", saved(t, `{"a":[1]}`), id)...)
	if got.RecordID != id || got.Policy != "package policy" || got.PolicyID != "default_gpu" || string(got.Values["a"]) != "[1]" {
		t.Errorf("asked for %+v", got)
	}
	cli(t, exitDone, "", append(broker, "latest")...)
	if want := "0123456789abcdef0123456789abcdef"; got.RecordID != want {
		t.Errorf("latest asked for record %s, want %s", got.RecordID, want)
	}
	cli(t, exitDone, "", append(broker, "--policy-id", "strict", saved(t, "e30.e30.AA\n"))...)
	if got.PolicyID != "strict" || string(got.Evidence) != `{"token":"e30.e30.AA"}` || got.Values != nil {
		t.Errorf("asked for %+v", got)
	}
}
