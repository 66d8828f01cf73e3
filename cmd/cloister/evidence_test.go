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
		{[]string{files[0]}, exitDone, "valid tpm evidence, nonce not checked, but " + unknownKey},
		{[]string{"--json", files[0]}, exitDone, `"genuine": false`},
		{[]string{"--ak", keys[0], files[0]}, exitDone, "genuine tpm evidence"},
		{[]string{"--ak", keys[1], "--ak", keys[0] + ".b64", "--json", files[0]}, exitDone, `"genuine": true`},
		{[]string{"--ak", keys[0], files[1]}, exitRefused, "want one of the 1 given by --ak"},
		{[]string{"--nonce", "abcd", files[0]}, exitRefused, "--nonce was read as 2 bytes of hex"},
		{[]string{"--ak", keys[0], "--nonce", strings.Repeat("00", 32), files[0]}, exitDone, "nonce checked, read as 32 bytes of hex"},
		{[]string{"--ak", files[0], files[0]}, exitRefused, "neither a PEM public key nor base64"},
		{[]string{"--tee", "moon", files[0]}, exitUsage, "known: "},
		{[]string{"--tee", "snp", "--ak", keys[0], files[0]}, exitUsage, "--ak is for --tee tpm"},
		{[]string{"--tee", "snp", files[0]}, exitRefused, "attestation_report is missing"},
		{[]string{"--at", "soon", files[0]}, exitUsage, "2026-01-02T15:04:05Z"},
	} {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"evidence", "verify", "--tee", "tpm"}, tc.args...), nil, &out, &out)
		if code != tc.code || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%q: exit code %d, want %d and %q: %s", tc.args, code, tc.code, tc.says, out.String())
		}
	}
}

// TestRecordedEvidence verifies evidence of real hardware as a user would.
func TestRecordedEvidence(t *testing.T) {
	dir := evidence.Dir(t)
	for tee, file := range map[string]string{
		"snp": "amd-sev-snp/coco-evidence-v3.json", "az-snp-vtpm": "azure-snp-vtpm/evidence-v0.json", "tpm": "tpm/coco-tpm-evidence.json",
	} {
		var out bytes.Buffer
		args := []string{"evidence", "verify", "--tee", tee, "--json", "--at", "2026-06-01T00:00:00Z", filepath.Join(dir, file)}
		code := run(t.Context(), args, nil, &out, &out)
		var v verdict
		if err := json.Unmarshal(out.Bytes(), &v); err != nil || code != exitDone || !v.Valid || v.Genuine != (tee != "tpm") || len(v.Claims) == 0 {
			t.Errorf("%s: exit code %d, %v: %s", tee, code, err, out.String())
		}
	}
}
