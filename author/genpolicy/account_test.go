package genpolicy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Who the pod's account is, and what it says about tokens, counts where the pod itself says nothing.
func TestAccountToken(t *testing.T) {
	const off = "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: NAME}\nautomountServiceAccountToken: false\nimagePullSecrets: [{name: x}]\n"
	for _, tc := range []struct {
		spec, account string
		want          bool
	}{
		{"serviceAccountName: shop", "shop", false},
		{"serviceAccount: shop", "shop", false},
		{"serviceAccountName: shop", "shop, namespace: default", false},
		{"restartPolicy: Always", "default", false},
		{"serviceAccountName: shop", "other", true},
		{"serviceAccountName: shop", "shop, namespace: elsewhere", true},
		{"{serviceAccountName: shop, automountServiceAccountToken: true}", "shop", true},
	} {
		spec := strings.NewReplacer("{", "", "}", "", ", ", "\n  ").Replace(tc.spec)
		text := strings.NewReplacer("%SPEC", spec, "%C", "tty: false").Replace(onePod) + strings.ReplaceAll(off, "NAME", tc.account)
		r, err := generate(t, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		mounts := dataOf(t, r.Policy).Containers[1].OCI.Mounts
		if got := slices.ContainsFunc(mounts, func(m mount) bool { return m.Destination == tokenDir }); got != tc.want {
			t.Errorf("%s, account %s: a mount for the token is admitted: %v", tc.spec, tc.account, got)
		}
	}
}

// The patch that the documentation has against Azure's tokens takes out that mount and no other.
func TestPatchOfAzure(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/policy-generate.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n    [{\"op\": \"remove\"")
	patch, _, _ := strings.Cut(rest, "\n")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "genpolicy-settings.d"), 0o700); err != nil || !found {
		t.Fatal(err, found)
	}
	if err := os.WriteFile(filepath.Join(dir, "genpolicy-settings.d", "1.json"), []byte("[{\"op\": \"remove\""+patch), 0o600); err != nil {
		t.Fatal(err)
	}
	patched, err := LoadSettings(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := one(t, "", "", Options{})
	want := slices.DeleteFunc(c.OCI.Mounts, func(m mount) bool { return m.Destination == "/var/run/secrets/azure/tokens" })
	c, _ = one(t, "", "", Options{Settings: patched})
	if got := c.OCI.Mounts; !slices.EqualFunc(got, want, func(a, b mount) bool { return a.Destination == b.Destination }) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
