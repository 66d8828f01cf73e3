package broker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/broker/config"
)

const (
	allowAll = "package policy\nimport rego.v1\nallow := true\n"
	allowNo  = "package policy\nimport rego.v1\nallow := false\n"
)

// TestPoliciesOfAFolder: what is in the folder counts, as a whole and once it compiles; nobody changes it over the API; tenants have
// their own.
func TestPoliciesOfAFolder(t *testing.T) {
	var folder string
	s := newServed(t, func(dir string, c *config.Config) {
		folder = filepath.Join(dir, "policies")
		c.Policies.Directory = folder
		if err := os.MkdirAll(filepath.Join(folder, "attestation"), 0o700); err != nil {
			t.Fatal(err)
		}
		certtest.Write(t, filepath.Join(folder, "resource.rego"), []byte(allowNo))
	})
	s.approve()
	refused := func(when string) {
		t.Helper()
		if got, err := s.fetch("resource/default/key/1"); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("%s the guest gets %q, %v", when, got, err)
		}
	}
	change := func(name, text string, ok bool) {
		t.Helper()
		certtest.Write(t, filepath.Join(folder, name), []byte(text))
		if err := s.b.reloads.Check(t.Context()); (err == nil) != ok {
			t.Errorf("%s is taken: %v, want success %v", name, err, ok)
		}
	}
	refused("by the policy of the folder")
	change("resource.rego", allowAll, true)
	s.wantSecret("after the change")
	// A broken file among good ones changes nothing.
	certtest.Write(t, filepath.Join(folder, "resource.rego"), []byte(allowNo))
	change("attestation/default_cpu.rego", "package policy\nallow := \n", false)
	s.wantSecret("with a broken file")
	if _, body := s.do(s.http(), "GET", "/metrics", ""); !strings.Contains(body, `cloister_reload_failures_total{what="policies"} 1`) {
		t.Error("metrics do not tell of the broken file")
	}
	if !strings.Contains(s.log.String(), "default_cpu") || !strings.Contains(s.log.String(), "policies") {
		t.Errorf("the log does not tell of the broken file:\n%s", s.log)
	}
	change("attestation/default_cpu.rego", sillyPolicy, true)
	refused("once all of the folder compiles")
	// That all of them have gone is more likely an accident than a wish for the broker's own defaults.
	s.must(os.Remove(filepath.Join(folder, "attestation", "default_cpu.rego")))
	change("resource.rego", allowAll, false)
	refused("while the folder has lost its attestation policies")
	change("attestation/other_cpu.rego", sillyPolicy, true)
	s.wantSecret("by the default policy that the folder no longer replaces")

	for what, err := range map[string]error{
		"attestation policy": s.admin.SetAttestationPolicy(t.Context(), "default_cpu", sillyPolicy),
		"resource policy":    s.admin.SetResourcePolicy(t.Context(), allowNo),
		"by gRPC":            s.setByGRPC(s.token()),
	} {
		if err == nil || !strings.Contains(err.Error(), "policies.directory") {
			t.Errorf("%s over the API: %v", what, err)
		}
	}
	s.wantSecret("after the refusals")

	token, err := s.admin.CreateTenant(t.Context(), "team-a", client.Quota{})
	s.must(err)
	own := s.client(s.ready.URL+"/ns/team-a", certtest.Write(t, filepath.Join(s.dir, "team-a"), []byte(token)))
	s.must(own.SetResourcePolicy(t.Context(), allowNo))
	s.must(own.SetAttestationPolicy(t.Context(), "default_cpu", sillyPolicy))
	if err := own.SetAttestationPolicy(t.Context(), "default_cpu", "package policy\nallow := \n"); err == nil {
		t.Error("a tenant's broken policy is taken")
	}
	s.wantSecret("besides a tenant that lets nobody in")
}
