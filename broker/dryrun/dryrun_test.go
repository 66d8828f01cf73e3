package dryrun

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/test/evidence"
)

const claims = `{"init_data":"88","init_data_claims":{"aa.toml":{},"agent_policy_claims":"left out: sha256:00"},"report_data":"aa",
	"runtime_data_claims":{"nonce":"n"},
	"tpm":{"ak_public":"QUs=","ak_endorsement":"ek-certificate","pcr00":"00","pcr04":"04","pcr07":"07","pcr09":"09"}}`

var approved = appraise.Values{
	"tpm_pcr00": json.RawMessage(`["00"]`), "tpm_pcr07": json.RawMessage(`["07"]`), "tpm_pcr04": json.RawMessage(`["04"]`),
	"tpm_pcr09": json.RawMessage(`["99","09"]`), "tpm_init_data": json.RawMessage(`["88"]`),
}

func record(t *testing.T, evidence string) []byte {
	t.Helper()
	raw, err := json.Marshal(decision.Record{
		ID: strings.Repeat("0", 32), Kind: decision.KindAttestation, Decision: "allow",
		Parts: []decision.Part{{Name: "cpu0", TEE: "tpm", Evidence: json.RawMessage(evidence)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func token(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".AA"
}

func appraised(t *testing.T, raw []byte, trial appraise.Trial) *Result {
	t.Helper()
	s, err := Read(raw)
	if err != nil {
		t.Fatal(err)
	}
	devices, err := s.Claims()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Appraise(t.Context(), trial, devices)
	if err != nil {
		t.Fatal(err)
	}
	out.Notes = s.Notes(devices)
	return out
}

func TestForms(t *testing.T) {
	ear := `{"jti":"x","submods":{"cpu0":{"ear.status":"warning","ear.veraison.annotated-evidence":` + claims + `}}}`
	for name, raw := range map[string][]byte{
		"record": record(t, claims), "token": []byte(token(ear)), "claims of a token": []byte(ear),
		"answer of attest": []byte(`{"token":"` + token(ear) + `"}`),
		"refusal with its attestation": []byte(`{"id":"1","kind":"resource","decision":"deny","attestation":` +
			string(record(t, claims)) + `}`),
	} {
		out := appraised(t, raw, appraise.Trial{Values: approved})
		if !out.Affirming() || len(out.Parts) != 1 || out.Parts[0].Vector["hardware"] != 2 {
			t.Errorf("%s: %+v", name, out)
		}
		got := map[string]bool{}
		for _, c := range out.Parts[0].Checks {
			if got[c.Claim] = true; !c.Holds && c.Of != "hardware" {
				t.Errorf("%s: %+v does not hold", name, c)
			}
			if c.Claim == "tpm.pcr09" && (c.Of != "executables" || c.Reference != "tpm_pcr09" || string(c.Expected) != `["99","09"]` || string(c.Got) != `"09"`) {
				t.Errorf("%s: check is %+v", name, c)
			}
		}
		for _, claim := range []string{"tpm.ak_endorsement", "tpm.pcr00", "tpm.pcr04", "tpm.pcr07", "tpm.pcr09", "init_data"} {
			if !got[claim] {
				t.Errorf("%s: nothing is told of %s", name, claim)
			}
		}
		if out := appraised(t, raw, appraise.Trial{}); out.Status != appraise.StatusWarning || out.CannotTell != "" || len(out.Parts[0].Findings) != 5 {
			t.Errorf("%s without values: %+v", name, out)
		}
	}
	for name, raw := range map[string]string{
		"nothing": "", "text": "hello", "array": "[]", "null": "null", "number": "1", "empty": "{}", "token of text": token("hello"),
		"token of null": token("null"), "member token": `{"token":"x"}`, "bad record": `{"kind":1,"decision":2}`, "two": `{"a":1}{}`,
	} {
		if s, err := Read([]byte(raw)); err == nil {
			t.Errorf("%s is read as %s", name, s.Form)
		}
	}
	for name, raw := range map[string]string{
		"no submods": token(`{"submods":{}}`), "no claims": token(`{"submods":{"cpu0":{}}}`), "no parts": `{"kind":"resource","decision":"deny"}`,
		"two TEEs": string(record(t, `{"tpm":{},"snp":{}}`)), "no TEE": string(record(t, `{"init_data":"00"}`)),
	} {
		s, err := Read([]byte(raw))
		if err == nil {
			_, err = s.Claims()
		}
		if err == nil || errors.Is(err, ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLeftOut asks policies for what records do not keep.
func TestLeftOut(t *testing.T) {
	const head = "package policy\nimport rego.v1\ndefault executables := 33\ntrust_claims := {\"executables\": executables}\n"
	short := `{"tpm":{"pcr04":"04","cloister.shortened":true},"init_data":"88","init_data_claims":"left out: it is long"}`
	for _, tc := range []struct {
		name, evidence, policy string
		status                 string
		tells                  bool
	}{
		{"what is there", claims, `executables := 3 if input.tpm.pcr04 == "04"`, appraise.StatusAffirming, true},
		{"what is there and wrong", claims, `executables := 3 if input.tpm.pcr04 == "05"`, appraise.StatusWarning, true},
		{"the policy", claims, `executables := 3 if input.init_data_claims.agent_policy_claims.x == 1`, appraise.StatusWarning, false},
		{"the policy is not there", claims, `executables := 3 if not input.init_data_claims.agent_policy_claims.x`, appraise.StatusAffirming, false},
		{"an alternative without", claims, "executables := 3 if input.init_data_claims.agent_policy_claims.x == 1 else := 4 if input.tpm.pcr04", appraise.StatusAffirming, true},
		{"log of a short record", short, `executables := 3 if some e in input.tpm.uefi_event_logs`, appraise.StatusWarning, false},
		{"text of a short record", short, `executables := 3 if input.tpm.pcr04 == "05"`, appraise.StatusWarning, true},
		{"initdata of a short record", short, `executables := 3 if input.init_data_claims["aa.toml"]`, appraise.StatusWarning, false},
		{"claim in place", claims, "x := 3 if input.tpm.pcr04\ntrust_claims := {\"executables\": x} if true", "", false},
	} {
		text := head + tc.policy
		if tc.status == "" {
			text, tc.status = "package policy\nimport rego.v1\n"+tc.policy, appraise.StatusAffirming
		}
		s, err := Read(record(t, tc.evidence))
		if err != nil {
			t.Fatal(err)
		}
		devices, err := s.Claims()
		if err != nil {
			t.Fatal(err)
		}
		all, err := appraise.DryRun(t.Context(), text, nil, []appraise.Evidence{devices[0].Evidence})
		if err != nil {
			t.Fatal(tc.name, err)
		}
		if unknown := devices[0].unknown(all[0]); all[0].Status != tc.status || (len(unknown) == 0) != tc.tells {
			t.Errorf("%s: %s, unknown %q; want %s, certain: %t", tc.name, all[0].Status, unknown, tc.status, tc.tells)
		}
	}
	notes := appraised(t, record(t, short), appraise.Trial{}).Notes
	if text := strings.Join(notes, "\n"); !strings.Contains(text, "tpm (all but short texts)") || !strings.Contains(text, "init_data_claims") {
		t.Errorf("notes: %q", notes)
	}
}

// TestRecorded verifies and appraises evidence of real hardware.
func TestRecorded(t *testing.T) {
	raw := evidence.Read(t, "amd-sev-snp/coco-evidence-v3.json")
	s, err := Read(raw)
	if err != nil || s.Form != FormEvidence {
		t.Fatal(s, err)
	}
	at := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	set, err := verifier.NewSet(verifier.Builtin(verifier.Config{Now: func() time.Time { return at }, Unbound: true}))
	if err != nil {
		t.Fatal(err)
	}
	devices, err := s.Verify(t.Context(), set, Binding{TEE: "snp"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := Appraise(t.Context(), appraise.Trial{}, devices)
	if err != nil || out.Affirming() || out.CannotTell != "" {
		t.Errorf("%+v, %v", out, err)
	}
	for _, b := range []Binding{{}, {TEE: "moon"}, {TEE: "tdx"}, {TEE: "snp", ReportData: make([]byte, 64)}, {TEE: "snp", InitData: []byte("no toml [")}} {
		if _, err := s.Verify(t.Context(), set, b); err == nil {
			t.Errorf("verified with %+v", b)
		}
	}
}

func TestReadValues(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for raw, want := range map[string]int{
		`{"a":["1"],"b":2}`: 2, `{"values":{"a":["1"]},"boots":[]}`: 1, `{"values":["1"]}`: 1, `{}`: 0,
		`[{"name":"a","value":["1"],"expiration":"2026-01-02T00:00:00Z"},{"name":"b","value":1,"expiration":"2025-01-02T00:00:00Z"}]`: 1,
		``: -1, `[1]`: -1, `{"a":null}`: -1, `"x"`: -1,
	} {
		values, ended, err := ReadValues([]byte(raw), now)
		if (err != nil) != (want < 0) || err == nil && len(values) != want {
			t.Errorf("%s: %v, %v, want %d", raw, values, err, want)
		}
		if strings.HasPrefix(raw, "[{") && (len(ended) != 1 || ended[0] != "b") {
			t.Errorf("ended are %q", ended)
		}
	}
}

// FuzzRead reads what anybody may have saved, and appraises it.
func FuzzRead(f *testing.F) {
	f.Add([]byte(claims))
	f.Add([]byte(token(`{"submods":{"gpu1":{"ear.veraison.annotated-evidence":` + claims + `}}}`)))
	f.Add([]byte(`{"kind":"attestation","decision":"allow","parts":[{"name":"cpu0","evidence":` + claims + `}]}`))
	f.Add([]byte(`{"tee-evidence":{"primary_evidence":{}}}`))
	if dir := os.Getenv("CLOISTER_EVIDENCE"); dir != "" {
		files, _ := filepath.Glob(filepath.Join(dir, "*", "*.json")) // the pattern is right
		for _, file := range files {
			if raw, err := os.ReadFile(file); err == nil {
				f.Add(raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Read(raw)
		if err != nil || s.Form != FormRecord && s.Form != FormToken {
			return
		}
		devices, err := s.Claims()
		if err != nil {
			return
		}
		for i := range devices {
			devices[i].Class = "cpu"
		}
		if out, err := Appraise(t.Context(), appraise.Trial{Values: approved}, devices); err == nil && len(out.Parts) != len(devices) {
			t.Errorf("%d parts of %d devices", len(out.Parts), len(devices))
		}
	})
}
