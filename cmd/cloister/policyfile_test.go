package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadPolicyRefuses: what the guest would stop for after a whole boot is said at the desk.
func TestReadPolicyRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"package agent_policy\nthis is not rego {{{": "line 2: ",
		"package other\nx := 1":                      "want agent_policy",
		"":                                           "empty",
		"package agent_policy\nx { true }":           "",
		"package agent_policy\nx if true":            "",
	} {
		file := filepath.Join(t.TempDir(), "p.rego")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := readPolicy(file)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, _, err := readPolicy("../../docs/howto/pod-policy.rego"); err != nil {
		t.Error(err)
	}
}
