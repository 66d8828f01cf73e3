package broker

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/wire/kbs"
)

// TestChosenPolicy: who asks the attestation API to appraise by a policy of its choice gets a token that opens nothing.
func TestChosenPolicy(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Sample.InsecureSample = true })
	w.must(w.admin.SetAttestationPolicy(t.Context(), "lax_cpu", `package policy
import rego.v1
trust_claims := {"hardware": 2, "executables": 3, "configuration": 2}
`))
	api := httptest.NewServer(w.b.api.REST())
	defer api.Close()
	g := w.guest()
	jwk, err := kbs.NewJWK(&g.key.PublicKey)
	w.must(err)
	runtime := kbs.RuntimeData{Nonce: "mine", TEEPubKey: jwk}
	data, err := kbs.ReportData(runtime, nil, kbs.DefaultHash)
	w.must(err)
	structured, err := json.Marshal(map[string]any{"nonce": runtime.Nonce, "tee-pubkey": jwk})
	w.must(err)
	evidence, err := json.Marshal(map[string]string{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(data)})
	w.must(err)
	token := func(policy string) string {
		t.Helper()
		body, err := json.Marshal(map[string]any{
			"policy_ids": []string{policy},
			"verification_requests": []any{map[string]any{
				"tee": "sample", "evidence": base64.RawURLEncoding.EncodeToString(evidence), "runtime_data": map[string]any{"structured": json.RawMessage(structured)},
			}},
		})
		w.must(err)
		resp, err := http.Post(api.URL+"/attestation", "application/json", bytes.NewReader(body))
		w.must(err)
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		w.must(err)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("attestation by %s: %d %s", policy, resp.StatusCode, answer)
		}
		return string(answer)
	}
	for policy, says := range map[string]string{"lax": `policy \"lax\" appraised cpu0`, "default": "refused: "} {
		h := http.Header{"Authorization": {"Bearer " + token(policy)}}
		status, answer := g.do("GET", "/kbs/v0/resource/default/key/1", nil, h)
		if status != http.StatusUnauthorized || !strings.Contains(string(answer), says) {
			t.Errorf("token by policy %s: %d %s, want %s", policy, status, answer, says)
		}
	}
}
