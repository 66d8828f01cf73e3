package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
)

const gotPCR = "1f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a7988"

// refusedRecord is of a guest that is refused for another command line, which is near to an approved one.
var refusedRecord = `{"id":"0123456789abcdef0123456789abcdef","time":"2026-03-02T03:00:00Z","kind":"resource","decision":"deny",
"subject":"default/key/1","reason":"no","policy":"default_cpu",
"findings":[{"policy":"resource-policy","rule":"every_part_affirming","line":16,"expression":"every part in input.submods {\n\tpart.x\n}","claim":"submods","got":{}}],
"attestation_id":"0123456789abcdef0123456789abcdee","attestation":{"id":"0123456789abcdef0123456789abcdee","time":"2026-03-02T03:00:00Z",
"kind":"attestation","decision":"allow","tee":"tpm","parts":[{"name":"cpu0","tee":"tpm","status":"warning","policy":"default_cpu",
"vector":{"configuration":2,"executables":33,"hardware":2},"findings":[{"policy":"default_cpu","rule":"executables","line":48,
"expression":"input.tpm.pcr09 in query_reference_value(\"tpm_pcr09\")","claim":"tpm.pcr09","got":"` + gotPCR + `","reference":"tpm_pcr09",
"expected":["` + strings.Repeat("ab", 32) + `","` + strings.Replace(gotPCR, "1f2e3d4c5b6a79", "1f2e3d4c5b6a00", 1) + `"]}],
"evidence":{"init_data":"88888888","tpm":{"pcr09":"` + gotPCR + `","pcr04":"0404040404"}}}]}}`

func saved(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "saved")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func cli(t *testing.T, code int, stdin string, args ...string) string {
	t.Helper()
	for _, name := range []string{envKBS, envCert, envToken, envDir, envClientCert, envClientKey} {
		t.Setenv(name, "")
	}
	var out bytes.Buffer
	if got := run(t.Context(), args, strings.NewReader(stdin), &out, &out); got != code {
		t.Fatalf("cloister %s: exit code %d, want %d:\n%s", strings.Join(args, " "), got, code, out.String())
	}
	return out.String()
}

func contains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("it lacks %q:\n%s", w, text)
		}
	}
}

func TestExplainRecord(t *testing.T) {
	file := saved(t, refusedRecord)
	text := cli(t, exitDone, "", "explain", file)
	contains(t, text,
		"REFUSED: the evidence is genuine, but not approved: cpu0 is warning",
		"resource-policy line 16, rule every_part_affirming", "<- this part of the guest is not affirmed",
		"executables line 48", "got       1f2e3d4c5b6a7988..", "1 of 32 bytes differ, the first is byte 6",
		"..3d4c5b6a[79]88", "..3d4c5b6a[00]88", "cloister refvalue add tpm_pcr09 "+gotPCR, "Approve a value only when you know")
	for line := range strings.Lines(text) {
		if len(line) > 140 {
			t.Errorf("a line of %d bytes: %s", len(line), line)
		}
	}
	contains(t, cli(t, exitDone, "", "explain", "--full", file), strings.Repeat("ab", 32))
	contains(t, cli(t, exitDone, refusedRecord, "explain", "-"), "REFUSED")
	var x struct {
		ID     string
		Advice []advice
	}
	if err := json.Unmarshal([]byte(cli(t, exitDone, "", "explain", "--json", file)), &x); err != nil || x.ID == "" || len(x.Advice) != 1 || !x.Advice[0].Command {
		t.Errorf("JSON: %+v, %v", x, err)
	}
	contains(t, cli(t, exitRefused, "", "explain", "nosuch"), "no such file", "hint: want a request id")
	contains(t, cli(t, exitRefused, "", "explain", saved(t, "hello")), "neither evidence", "hint:")
	contains(t, cli(t, exitRefused, "", "explain", saved(t, `{"quote":"AA=="}`)), "hint: `cloister appraise --dry-run")
}

// fakeBroker answers GET requests with JSON.
func fakeBroker(t *testing.T, answers map[string]string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		if !ok {
			http.Error(w, "nothing at "+r.URL.Path, http.StatusNotFound)
			return
		}
		w.Write([]byte(text))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestExplainWithBroker lets the broker's reference values say more: an approval that has ended, and the group a guest resembles.
func TestExplainWithBroker(t *testing.T) {
	approval := func(group, until string) string {
		return `[{"group":"` + group + `","registered":"2025-01-01T00:00:00Z","expiration":"` + until + `","by":"admin","source":"sample","signer":"unsigned"}]`
	}
	const future = "2099-01-01T00:00:00Z"
	values := `[
		{"name":"tpm_pcr04","value":["0404040404"],"expiration":"` + future + `","elements":[{"value":"0404040404","approvals":` + approval("web", future) + `}]},
		{"name":"tpm_pcr09","value":["ab"],"expiration":"` + future + `","elements":[{"value":"ab","approvals":` + approval("web", future) + `}]},
		{"name":"tpm_pcr09_old","value":["` + gotPCR + `"],"expiration":"2025-06-01T00:00:00Z","elements":[{"value":"` + gotPCR + `","approvals":` + approval("old", "2025-06-01T00:00:00Z") + `}]}]`
	const id = "0123456789abcdef0123456789abcdef"
	url := fakeBroker(t, map[string]string{"/kbs/v0/reference-value": values, "/cloister/v1/attestations/" + id: refusedRecord})
	for _, what := range []string{
		id, saved(t, refusedRecord), saved(t, `{"error":"broker refused: no (request `+id+`)","request":"`+id+`"}`),
		saved(t, `{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"resource refused (policy p, request `+id+`)"}`),
		saved(t, "cloister: error: resource default/key/1 refused: something (policy default_cpu, request "+id+")\n"),
	} {
		contains(t, cli(t, exitDone, "", "explain", "--kbs", url, what),
			`it was approved for group "old" as tpm_pcr09_old and ended on 2025-0`, "nearest group: web: the guest shows 1 of its 2 values, not tpm_pcr09")
	}
	contains(t, cli(t, exitRefused, "", "explain", saved(t, "refused (request "+id+")")), "hint: `cloister explain "+id)
	contains(t, cli(t, exitRefused, "", "explain", "--kbs", url, strings.Repeat("1", 32)), "404")
}

func TestExplainToken(t *testing.T) {
	payload := `{"jti":"x","iat":1772420400,"submods":{"cpu0":{"ear.status":"warning","ear.trustworthiness-vector":{"executables":33},
		"ear.appraisal-policy-id":"default","ear.veraison.annotated-evidence":{"init_data":"88","tpm":{"pcr09":"` + gotPCR + `"}}}}}`
	file := saved(t, "e30."+base64.RawURLEncoding.EncodeToString([]byte(payload))+".AA\n")
	text := cli(t, exitDone, "", "explain", file)
	contains(t, text, "cpu0 (tpm): warning, by policy default", "signature was not checked", "a token has no findings")
	if strings.Contains(text, "refvalue add") {
		t.Errorf("findings without reference values:\n%s", text)
	}
	url := fakeBroker(t, map[string]string{"/kbs/v0/reference-value": `[]`})
	contains(t, cli(t, exitDone, "", "explain", "--kbs", url, file), "cloister refvalue add tpm_pcr09 "+gotPCR)
}

func TestExplainGateDenial(t *testing.T) {
	text := "cloister: error: creating container app: CreateContainerRequest is blocked by policy: " +
		"closest is container \"web\" of the policy: OCI.Process.Cwd: got \"/root\x1b[2J\", expected \"/srv\"; more (hint: of the runtime)\n"
	out := cli(t, exitDone, text, "explain", "-")
	contains(t, out, "REFUSED by the guest's own policy", "request  CreateContainerRequest", "why      more", "cloister initdata new")
	if strings.Contains(out, "\x1b") || strings.Contains(out, "hint") {
		t.Errorf("an escape reaches the terminal, or a hint is taken for a reason: %q", out)
	}
	contains(t, cli(t, exitDone, "ExecProcessRequest is blocked by policy: sh", "explain", "--json", "-"), "--allow-exec", `"request_type": "ExecProcessRequest"`)
}

// TestHostileValues gives no command for values that a shell or a terminal could take for something else.
func TestHostileValues(t *testing.T) {
	for got, want := range map[string]string{
		`"plain-1"`: "cloister refvalue add x plain-1", `"$(reboot)"`: "cloister refvalue add x '$(reboot)'", `7`: "cloister refvalue add --literal x 7",
		`"a'b; reboot"`: "", `"a\u001b[2Jb"`: "", `"-f"`: "", `"a\nb"`: "", `""`: "", `"\u202e"`: "", `"` + strings.Repeat("a", 2000) + `"`: "",
	} {
		f := rego.Finding{Claim: "c", Got: json.RawMessage(got), Reference: "x", Expression: `input.c in query_reference_value("x")`}
		do, command := addCommand(f)
		if command != (want != "") || command && do != want {
			t.Errorf("%s: %t %q, want %q", got, command, do, want)
		}
	}
	f := rego.Finding{Claim: "c", Got: json.RawMessage(`true`), Reference: "x", Expected: json.RawMessage(`false`)}
	if do, _ := addCommand(f); do != "cloister refvalue add --literal --single x true" {
		t.Errorf("a value that is no list: %q", do)
	}
	zeros := rego.Finding{Claim: "init_data", Got: json.RawMessage(`"0000"`), Reference: "init_data"}
	if a := advise("cpu0", zeros, nil, time.Now()); a.Command || !strings.Contains(a.Note, "without initdata") {
		t.Errorf("no initdata: %+v", a)
	}
}

func TestNearest(t *testing.T) {
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for _, tc := range []struct {
		got, accepted, want string
	}{
		{`"00ff"`, `"00FF"`, "upper and lower case"}, {`"0011223344556677"`, `"0011223344556600"`, "1 of 8 bytes differ, the first is byte 7"},
		{`"00112233"`, `"ffeeddcc"`, ""}, {`"0011"`, `"001122"`, "the same beginning, but 3 bytes and not 2"}, {`5`, `8`, "3 less than 8"},
		{`"1"`, `1`, "the same, but not a text"}, {`9`, `8`, "1 more than 8"}, {`true`, `false`, ""}, {`{}`, `1`, ""}, {`"x"`, `null`, ""},
		{`"000102030405060708090a0b0c0d0e0f"`, `"AAECAwQFBgcICQoLDA0ODw=="`, "written as base64 and not as hex"},
		{`-9223372036854775808`, `9223372036854775807`, "18446744073709551615 less"},
	} {
		n := nearest(raw(tc.got), []json.RawMessage{raw(tc.accepted)})
		if (n == nil) != (tc.want == "") || n != nil && !strings.Contains(n.Differs, tc.want) {
			t.Errorf("%s and %s: %+v, want %q", tc.got, tc.accepted, n, tc.want)
		}
	}
	if g := nearestGroups([]refstore.Record{{Name: "x"}}, []json.RawMessage{raw(`{`)}); len(g) != 0 {
		t.Errorf("groups of nothing: %+v", g)
	}
}
