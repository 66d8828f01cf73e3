package genpolicy

import (
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
