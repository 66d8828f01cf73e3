package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		files, keys = append(files, file), append(keys, e.AKPublic)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{files[0]}, exitDone, "attestation key not checked"},
		{[]string{"--ak", keys[0], files[0]}, exitDone, "attestation key checked"},
		{[]string{"--ak", keys[0], files[1]}, exitRefused, "signed by the key " + keys[1]},
	} {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"evidence", "verify", "--tee", "tpm"}, tc.args...), nil, &out, &out)
		if code != tc.code || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%q: exit code %d, want %d and %q: %s", tc.args, code, tc.code, tc.says, out.String())
		}
	}
}
