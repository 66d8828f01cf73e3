package broker

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/dryrun"
)

// TestDryRun appraises a recorded attestation, its token and its message again, and sees that nothing came of it.
func TestDryRun(t *testing.T) {
	w := newWorld(t, nil)
	g := w.guest().ready()
	token, err := os.ReadFile(filepath.Join(w.dir, "data", AdminTokenFile))
	w.must(err)
	admin := http.Header{"Authorization": {"Bearer " + string(bytes.TrimSpace(token))}}
	run := func(want int, req dryrun.Request) (*dryrun.Result, string) {
		t.Helper()
		body, err := json.Marshal(req)
		w.must(err)
		g.cookie = nil
		status, answer := g.do("POST", "/cloister/v1/appraisals/dry-run", body, admin)
		if status != want {
			t.Fatalf("dry run: %d, want %d: %s", status, want, answer)
		}
		var out dryrun.Result
		if want == http.StatusOK {
			w.must(json.Unmarshal(answer, &out))
		}
		return &out, string(answer)
	}
	tokenJSON, err := json.Marshal(map[string]string{"token": g.token})
	w.must(err)
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(g.token, ".")[1])
	w.must(err)
	var claims struct {
		ID string `json:"jti"`
	}
	w.must(json.Unmarshal(raw, &claims))
	record := claims.ID
	for name, req := range map[string]dryrun.Request{
		"record": {RecordID: record}, "token": {Evidence: tokenJSON}, "message": {Evidence: g.sent, TEE: "tpm"},
	} {
		out, text := run(http.StatusOK, req)
		// The credential of the handshake is over, so that the message alone does not show an endorsed key.
		if want := name != "message"; out.Affirming() != want {
			t.Errorf("%s: affirming %t, want %t: %s", name, out.Affirming(), want, text)
		}
		req.Values = map[string]json.RawMessage{"tpm_pcr04": json.RawMessage(`["00"]`)}
		if out, text = run(http.StatusOK, req); out.Affirming() || !strings.Contains(text, `"reference":"tpm_pcr04"`) {
			t.Errorf("%s with other values: %s", name, text)
		}
	}
	const lax = "package policy\nimport rego.v1\ndefault hardware := 97\nhardware := 2 if input.tpm.pcr04\ntrust_claims := {\"hardware\": hardware}"
	if out, text := run(http.StatusOK, dryrun.Request{RecordID: record, Policy: lax, Values: map[string]json.RawMessage{}}); !out.Affirming() {
		t.Errorf("a candidate that asks for little: %s", text)
	}
	run(http.StatusBadRequest, dryrun.Request{RecordID: record, Policy: "package nonsense"})
	run(http.StatusBadRequest, dryrun.Request{RecordID: record, PolicyID: "nosuch"})
	run(http.StatusBadRequest, dryrun.Request{})
	run(http.StatusBadRequest, dryrun.Request{Evidence: g.sent})
	run(http.StatusNotFound, dryrun.Request{RecordID: strings.Repeat("0", 32)})
	bad := bytes.Replace(g.sent, []byte(`"nonce":"`), []byte(`"nonce":"A`), 1)
	run(http.StatusBadRequest, dryrun.Request{Evidence: bad, TEE: "tpm"})
	if status, _ := g.do("POST", "/cloister/v1/appraisals/dry-run", []byte("{}"), nil); status != http.StatusUnauthorized {
		t.Errorf("without being admin: %d", status)
	}
	entries, err := w.admin.Audit(t.Context(), 0)
	w.must(err)
	for _, e := range entries {
		if e.Event == "attest" && e.RequestID != record {
			t.Errorf("a dry run counts as an attestation: %+v", e)
		}
	}
}
