package config

import (
	"strings"
	"testing"
)

// TestFaultsOfValuesNameTheLine: values of the right type that mean nothing are found in the file, too.
func TestFaultsOfValuesNameTheLine(t *testing.T) {
	for _, tc := range []struct{ name, text, says string }{
		{"key", "\n[server]\nlisten = \"8080\"\n", "line 3: server.listen is"},
		{"dotted key", "server.listen = \"8080\"\n", "line 1: server.listen is"},
		{"inline table", "\ndatabase = { connect_timeout = \"1ms\" }\n", "line 2: database.connect_timeout"},
		{"quoted key", "[\"server\"]\n\"listen\" = \"8080\"\n", "line 2: server.listen is"},
		{"of a package", "[resources]\nbackend = \"vault\"\n[resources.vault]\nmount_path = \"x\"\n", "line 3: resources: vault: "},
		{"no such key, but its table", "[attestation]\n# x\nsigning_certificates = \"x\"\n[admin]\n# y\nmode = \"jwt\"\n", "line 6: admin.mode"},
		{"table", "[limits]\nburst = -1\n", "line 1: limits are"},
		{"list", "[admin]\nmode = \"jwt\"\nrules = [{ role = \"r\", paths = \"/\" }]\nidentity_providers = [{ issuer = \"i\" }]\n", "line 4: admin.identity_providers[0]: want either"},
		{"list of tables", "[admin]\nmode = \"jwt\"\n[[admin.rules]]\nrole = \"r\"\n[[admin.identity_providers]]\nissuer = \"i\"\n", "line 5: admin.identity_providers[0]: want either"},
		{"several", "[attestation]\nmax_sessions = 0\ntoken_lifetime = \"0s\"\n", "line 2: attestation.max_sessions"},
		{"several", "[attestation]\nmax_sessions = 0\ntoken_lifetime = \"0s\"\n", "line 3: attestation.token_lifetime"},
		{"a text of several lines before it", "[server]\ntls_key = \"\"\"\na\nb\"\"\"\ntls_certificate = \"c\"\nlisten = \"8080\"\n", "line 6: server.listen"},
	} {
		if _, err := Parse([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.says)
		}
	}
	c := Default()
	c.Server.Listen = "8080"
	if err := c.Validate(); err == nil || strings.Contains(err.Error(), "line") {
		t.Errorf("without a file: %v", err)
	}
}
