package console_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/console/consoletest"
)

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// saving is the form that saves a text over another after its changes were seen.
func saving(old, text string) url.Values {
	return url.Values{"action": {"save"}, "text": {text}, "stored": {sum(old)}, "reviewed": {sum(text)}}
}

func TestPolicyEditor(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	const path = "/console/policies/attestation/default_cpu"
	text := func() string {
		t.Helper()
		s, err := w.Policies.Text(t.Context(), "default_cpu")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := text()
	loose := strings.Replace(old, "\tinput.tpm.pcr09 in query_reference_value(\"tpm_pcr09\")\n", "", 1)
	if loose == old {
		t.Fatal("the default policy does not look at PCR 9")
	}

	// What the compiler says has a line, and nothing is saved.
	bad := "package policy\n\nimport rego.v1\n\nallow if {\n\tfoo(\n}\n"
	if code := b.post(path, saving(old, bad)); code != http.StatusUnprocessableEntity {
		t.Errorf("a policy with a fault: %d", code)
	}
	b.has(`data-line="7"`, "foo(")

	// A dry run tells what would be, and changes nothing.
	dry := url.Values{"action": {"dry-run"}, "text": {loose}, "record": {w.Bad}, "stored": {sum(old)}}
	if code := b.post(path, dry); code != http.StatusOK {
		t.Errorf("dry run: %d", code)
	}
	b.has("Dry run", "would be")
	if !strings.Contains(b.last, "warning") || text() != old {
		t.Error("the dry run changed the policy")
	}
	dry.Set("record", "../x")
	if code := b.post(path, dry); code != http.StatusBadRequest {
		t.Errorf("dry run on nothing: %d", code)
	}
	gpu := url.Values{"action": {"dry-run"}, "text": {loose}, "record": {w.Bad}}
	if b.post("/console/policies/attestation/default_gpu", gpu); !strings.Contains(b.last, "has no part that policy") {
		t.Error("a dry run for another class says nothing")
	}

	// Saving needs that the changes of that very text were shown.
	unseen := saving(old, loose)
	unseen.Set("reviewed", sum(old))
	if code := b.post(path, unseen); code != http.StatusOK || text() != old {
		t.Errorf("saving what was not seen: %d", code)
	}
	b.has("Look at them once more", `<tr class="minus">`, "query_reference_value(&#34;tpm_pcr09&#34;)")
	if code := b.post(path, url.Values{"action": {"review"}, "text": {strings.ReplaceAll(loose, "\n", "\r\n")},
		"stored": {sum(old)}}); code != http.StatusOK {
		t.Errorf("review: %d", code)
	}
	b.has(`value="`+sum(loose)+`"`, "−1</span>", "+0</span>")
	if code := b.post(path, saving(old, loose)); code != http.StatusSeeOther || text() != loose {
		t.Errorf("saving: %d", code)
	}
	// Somebody else was faster.
	if code := b.post(path, saving(old, old+"# mine\n")); code != http.StatusConflict || text() != loose {
		t.Errorf("saving over what was not seen: %d", code)
	}
	b.has("Somebody else saved")
	if code := b.post(path, url.Values{"action": {"else"}, "text": {loose}}); code != http.StatusBadRequest {
		t.Errorf("an unknown action: %d", code)
	}

	fresh := "package policy\n\nimport rego.v1\n\ntrust_claims := {\"hardware\": 2}\n"
	made := url.Values{"action": {"save"}, "text": {fresh}, "stored": {""}, "reviewed": {sum(fresh)}}
	if code := b.post("/console/policies/attestation/new_cpu", made); code != http.StatusSeeOther {
		t.Errorf("a new policy: %d", code)
	}
	if s, err := w.Policies.Text(t.Context(), "new_cpu"); err != nil || s != fresh {
		t.Errorf("the new policy is %q, %v", s, err)
	}
	entries, err := w.Audit.Since(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, e := range entries {
		if e.Event == "attestation-policy" {
			said = append(said, e.Policy+": "+e.Reason)
		}
	}
	want := "default_cpu: tried in the console by ann|default_cpu: done in the console by ann|" +
		"new_cpu: tried in the console by ann|new_cpu: done in the console by ann"
	if got := strings.Join(said, "|"); got != want {
		t.Errorf("audit log:\n%s\nwant\n%s", got, want)
	}
}

func TestResourcePolicy(t *testing.T) {
	w := consoletest.New(t)
	b := newBrowser(t, w).signIn(consoletest.Token)
	old, err := w.Parts.ResourcePolicies.Text(t.Context(), "resource-policy")
	if err != nil {
		t.Fatal(err)
	}
	deny := "package policy\n\nimport rego.v1\n\ndefault allow := false\n"
	if code := b.post("/console/policies/resource", saving(old, deny)); code != http.StatusSeeOther {
		t.Errorf("saving: %d %s", code, b.last)
	}
	if s, err := w.Parts.ResourcePolicies.Text(t.Context(), "resource-policy"); err != nil || s != deny {
		t.Errorf("the policy is %q, %v", s, err)
	}
}
