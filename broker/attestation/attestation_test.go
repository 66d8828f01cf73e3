package attestation

import (
	"bytes"
	"testing"

	"github.com/cloister/cloister/broker/appraise"
)

// TestRecordsKeepNoPolicy keeps the claims of init data whose policy lists a password, as data and as text.
func TestRecordsKeepNoPolicy(t *testing.T) {
	for name, policy := range map[string]string{
		"agent_policy_claims": "package agent_policy\npolicy_data := {\"env\": [\"PW=hunter2\"]}",
		"policy.rego":         "package agent_policy\nenv := [\"PW=hunter2\"]",
	} {
		claims := appraise.InitDataClaims(map[string]string{"policy.rego": policy, "aa.toml": "url = 'https://kbs'"})
		annotated := map[string]any{"init_data": "00", "init_data_claims": claims}
		kept, err := KeptEvidence(annotated)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(kept, []byte("hunter2")) || !bytes.Contains(kept, []byte(`"`+name+`":"left out: sha256:`)) {
			t.Errorf("kept of a policy as %s: %s", name, kept)
		}
		if !bytes.Contains(kept, []byte("https://kbs")) {
			t.Errorf("the other claims are not kept: %s", kept)
		}
		if _, ok := claims[name].(string); name == "agent_policy_claims" && ok {
			t.Error("the claims themselves, which the token has, were changed")
		}
	}
}
