package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/evidence"
	"github.com/cloister/cloister/test/faketpm"
)

func TestEvidenceVerifyKey(t *testing.T) {
	var files, keys []string
	for range 2 { // a TPM that is known, and one that anybody could have made
		f, err := faketpm.New(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		e, err := f.Evidence(make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "evidence.json")
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		der, err := base64.StdEncoding.DecodeString(e.AKPublic)
		if err != nil {
			t.Fatal(err)
		}
		key := filepath.Join(filepath.Dir(file), "ak.pem")
		if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(key+".b64", []byte(e.AKPublic+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		files, keys = append(files, file), append(keys, key)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{files[0]}, exitUnjudged, "signed by a key that anybody can have made"},
		{[]string{"--json", files[0]}, exitUnjudged, `"verdict": "cannot be judged"`},
		{[]string{"--ak", keys[0], files[0]}, exitDone, "genuine: tpm evidence"},
		{[]string{"--cert", keys[0], files[0]}, exitDone, "the nonce was not compared"},
		{[]string{"--ak", keys[1], "--ak", keys[0] + ".b64", "--json", files[0]}, exitDone, `"verdict": "genuine"`},
		{[]string{"--ak", keys[0], files[1]}, exitRefused, "expected one of the 1 given by --ak"},
		{[]string{"--nonce", "abcd", files[0]}, exitRefused, "expected abcd as given by the caller"},
		{[]string{"--ak", keys[0], "--nonce", strings.Repeat("00", 32), files[0]}, exitDone, "genuine: tpm evidence"},
		{[]string{"--ak", files[0], files[0]}, exitRefused, "neither a public key"},
		{[]string{"--tee", "moon", files[0]}, exitUsage, "known: "},
		{[]string{"--tee", "snp", "--ak", keys[0], files[0]}, exitUsage, "--ak is for --tee tpm"},
		{[]string{"--tee", "snp", files[0]}, exitRefused, "attestation_report is missing"},
		{[]string{"--time", "soon", files[0]}, exitUsage, "2026-01-02T15:04:05Z"},
		{[]string{"--at", "soon", files[0]}, exitUsage, "2026-01-02T15:04:05Z"},
		{[]string{"--report-data", "xyz", files[0]}, exitUsage, "neither hex nor base64"},
		{[]string{"--json", "--report-data", "xyz", files[0]}, exitUnjudged, `"verdict": "cannot be judged"`},
		{[]string{"--json", files[0] + ".absent"}, exitUnjudged, `"tcb_status": ""`},
		{[]string{"--tee", "TPM", "--ak", keys[0], "--report-data", "0x" + strings.Repeat("00", 32), files[0]}, exitDone, "genuine"},
		{[]string{"--ak", keys[0], "--nonce", strings.Repeat("A", 43), "--time", "2026-01-02", files[0]}, exitDone, "genuine"},
		{[]string{"--cases", files[0], files[0]}, exitUsage, "--cases stands alone"},
		{[]string{files[0] + ".absent"}, exitUsage, "no such file"},
		{[]string{}, exitUsage, "takes 1 argument"},
	} {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"evidence", "verify", "--tee", "tpm"}, tc.args...), nil, &out, &out)
		if code != tc.code || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%q: exit code %d, want %d and %q: %s", tc.args, code, tc.code, tc.says, out.String())
		}
	}
}

// exitUnjudged is the exit code of evidence that nothing can be said of.
const exitUnjudged = 2

// TestRecordedEvidence verifies evidence of real hardware, raw and in JSON, as a user would.
func TestRecordedEvidence(t *testing.T) {
	t.Chdir(evidence.Dir(t))
	const when, tdx = "2026-06-01T00:00:00Z", "intel-collateral/tdx-00806f050000-2025-06"
	cos := "intel-tdx/v4-cos113.bin --time 2025-06-15T00:00:00Z --collateral " + tdx
	debug := "amd-sev-snp/milan-v2-debug/report.bin --cert amd-sev-snp/milan-v2-debug/vcek.der --time " + when
	vmpl1 := "amd-sev-snp/milan-v3-vlek-vmpl1/report.bin --cert amd-sev-snp/milan-v3-vlek-vmpl1/vlek.der --time 2025-06-01T00:00:00Z"
	azure := "azure-snp-vtpm/hcl-report.bin --quote azure-snp-vtpm/quote.msg --signature azure-snp-vtpm/quote.sig " +
		"--cert azure-snp-vtpm/vcek.pem --time " + when
	keylime := "tpm/keylime-quote.out --signature tpm/keylime-quotesig.out --pcrs tpm/keylime-quotepcr.out --cert tpm/keylime-akpub.pem"
	synthetic := "synthetic/snp/valid-v5.bin --cert synthetic/snp/vcek-milan.der " +
		"--cert synthetic/snp/ca-milan/ask.pem --time 2026-01-01T00:00:00Z"
	for _, tc := range []struct {
		tee, args string
		code      int
		says      string
	}{
		{"snp", "amd-sev-snp/coco-evidence-v3.json --time " + when, 0, "genoa"},
		{"snp", "amd-sev-snp/genoa-v3/report.bin --time " + when, 2, "no VCEK or VLEK certificate"},
		{"snp", "amd-sev-snp/genoa-v3/report.bin --cert amd-sev-snp/genoa-v3/vcek.der --time " + when, 0, "no revocation list"},
		{"snp", "amd-sev-snp/genoa-v3/report.bin --cert amd-sev-snp/genoa-v3/auxblob.bin --time " + when, 0, "genoa"},
		{"snp", "amd-sev-snp/genoa-v3/tsm-report.json --time " + when, 0, "genoa"},
		{"snp", debug, 1, "policy_debug_allowed is true"},
		{"snp", vmpl1, 0, "vmpl is 1"},
		{"snp", vmpl1 + " --max-vmpl 0", 1, "vmpl is 1, expected at most 0"},
		{"snp", synthetic, 1, "the ASK in the evidence is not signed by ARK-Milan"},
		{"snp", synthetic + " --cert synthetic/snp/ca-milan/ark.pem", 0, "which the caller gave"},
		{"snp", synthetic + " --cert synthetic/snp/ca-milan/ark.pem --crl synthetic/snp/ca-milan/crl-ask-revoked.der", 1, "was revoked"},
		{"snp", synthetic + " --cert synthetic/snp/ca-milan/ark.pem --init-data " + strings.Repeat("07", 32), 1, "host_data (init data) is"},
		{"tdx", cos + " --log eventlog/cos-113-intel-tdx.bin", 0, `"tcb_status": "UpToDate"`},
		{"tdx", cos + " --log eventlog/cos-113-dupe-separator.bin", 1, "event log gives rtmr_0"},
		{"tdx", "intel-tdx/v4-cos113.bin", 2, "no collateral given"},
		{"tdx", "intel-tdx/v4-cos113.bin --collateral " + tdx, 1, "collateral_status is"},
		{"sgx", cos, 1, "TEE type of the quote is TDX"},
		{"eventlog", "eventlog/cos-113-intel-tdx.bin --quote " + cos, 0, `"replay"`},
		{"eventlog", "eventlog/cos-113-intel-tdx.bin", 2, "a log proves nothing by itself"},
		{"az-snp-vtpm", "azure-snp-vtpm/evidence-v0.json --time " + when, 0, "hcl_user_data"},
		{"az-snp-vtpm", azure, 0, "tpm_pcr_digest"},
		{"az-tdx-vtpm", "azure-tdx-vtpm/evidence-v1.json --time 2025-06-15T00:00:00Z --collateral " + tdx, 0, `"tcb_status": "OutOfDate"`},
		{"tpm", "tpm/coco-tpm-evidence.json", 2, "anybody can have made"},
		{"tpm", keylime, 0, "ak_public"},
		{"cca", "arm-cca/token-trustee.cbor --cert arm-cca/tastore.json", 0, "cca-platform-lifecycle"},
		{"cca", "arm-cca/token-trustee.cbor", 2, "no key of the platform given"},
		{"csv", "hygon-csv/report-v1.bin --cert hygon-csv/hsk_cek.cert", 0, "built in: Hygon"},
		{"csv", "synthetic/csv/v2.bin --cert synthetic/csv/hsk_cek.cert", 1, "HSK"},
		{"csv", "hygon-csv/coco-evidence.json", 2, "no certificates of chip"},
		{"nvidia", "nvidia/hopper-550.report.txt --cert nvidia/hopper-550.chain.txt", 0, "Hopper"},
		{"nvidia", "nvidia/multi_gpu_hopper.json", 0, `"devices"`},
		{"se", "synthetic/se/valid.json --cert synthetic/se/TEST-measurement-key.pem", 0, "image_phkh"},
		{"se", "synthetic/se/valid.json", 2, "no measurement key given"},
	} {
		var out bytes.Buffer
		args := append([]string{"evidence", "verify", "--json", "--tee", tc.tee}, strings.Fields(tc.args)...)
		code := run(t.Context(), args, nil, &out, &out)
		var v struct {
			Verdict    string
			Reasons    []string
			TCBStatus  *string `json:"tcb_status"`
			Advisories []string
			Claims     map[string]any
		}
		err := json.Unmarshal(out.Bytes(), &v)
		want := map[int]string{0: "genuine", 1: "refused", 2: "cannot be judged"}[tc.code]
		whole := v.Reasons != nil && v.TCBStatus != nil && v.Advisories != nil && v.Claims != nil
		if err != nil || code != tc.code || v.Verdict != want || !whole {
			t.Errorf("%s %s: exit code %d, want %d, %v: %s", tc.tee, tc.args, code, tc.code, err, out.String())
		}
		if !strings.Contains(strings.ToLower(out.String()), strings.ToLower(tc.says)) {
			t.Errorf("%s %s: want %q in %s", tc.tee, tc.args, tc.says, out.String())
		}
	}
}

// TestCasesCommand judges a folder with one case that is as expected and one that is not.
func TestCasesCommand(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"report.bin", "vcek.der"} {
		if err := os.WriteFile(filepath.Join(dir, name), evidence.Read(t, "amd-sev-snp/genoa-v3/"+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "cases.json")
	good := `{"id":"good","platform":"snp","report":"report.bin","leaf":"vcek.der","crl":null,"now":"2026-06-01T00:00:00Z","expect":"valid"}`
	for _, tc := range []struct {
		text string
		code int
		says string
	}{
		{`[` + good + `]`, exitDone, "ok\tgood\tvalid\tvalid\t-\t"},
		{`[` + good + `,` + strings.Replace(good, `"valid"`, `"invalid"`, 1) + `]`, exitRefused, "DIFFERS\tgood\tinvalid\tvalid\t-\t"},
		{`[` + strings.Replace(good, "vcek.der", "../vcek.der", 1) + `]`, exitUnjudged, "ERROR\tgood\tvalid\tunreadable"},
		{`[` + strings.Replace(good, "vcek.der", "report.bin", 1) + `]`, exitRefused, "cannot be read"},
		{`[` + strings.Replace(good, `"snp"`, `"moon"`, 1) + `]`, exitUnjudged, `platform is "moon"`},
		{`[` + strings.Replace(good, `"snp"`, `"SEV_SNP"`, 1) + `]`, exitDone, "ok\tgood"},
		{`[` + strings.Replace(good, `"expect":"valid"`, `"expect":7`, 1) + `,7,null,{},` + good + `]`, exitUnjudged, "ok\tgood"},
		{`[` + strings.Replace(good, "vcek.der", "absent", 1) + `,` +
			strings.Replace(good, `"valid"`, `"invalid"`, 1) + `]`, exitRefused, "ERROR"},
		{`[` + strings.Replace(good, `"valid"`, `"splendid"`, 1) + `]`, exitUnjudged, "is not known"},
		{`[` + strings.Replace(good, `"valid"`, `"valid-or-splendid"`, 1) + `]`, exitDone, "ok\tgood"},
		{`[` + strings.Replace(good, "00:00:00Z", "00:00:00", 1) + `]`, exitDone, "ok\tgood"},
		{`[]`, exitUsage, "expected 1 to"},
		{`{`, exitUsage, "reading cases"},
	} {
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if code := run(t.Context(), []string{"evidence", "verify", "--cases", file}, nil, &out, &out); code != tc.code ||
			!strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: exit code %d, want %d and %q: %s", tc.text, code, tc.code, tc.says, out.String())
		}
	}
	if err := os.WriteFile(file, []byte(`[`+good+`]`), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, messages bytes.Buffer
	if code := run(t.Context(), []string{"evidence", "verify", "--cases", file, "--json"}, nil, &out, &messages); code != exitDone {
		t.Fatalf("exit code %d: %s", code, messages.String())
	}
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["id"] != "good" || line["got"] != "valid" || line["match"] != true {
		t.Errorf("%v: %s", err, out.String())
	}
}
