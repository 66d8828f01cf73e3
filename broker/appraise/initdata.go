package appraise

import (
	"encoding/json"
	"io"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxDots bounds how deep a guest can nest a TOML file with dotted keys ("a.a.a.a = 1"). The TOML parser bounds brackets
// itself, but not these, and encoding a million levels as JSON overflows the stack, which ends the whole broker.
const maxDots = 8 << 10

// InitDataClaims turns the data of an initdata document into claims (attestation-service.md section 6.1): the TOML files
// of the guest's services become objects, and a policy that ends with its data gives that data. What cannot be read stays
// text, which no policy that looks inside will approve.
func InitDataClaims(data map[string]string) map[string]any {
	out := make(map[string]any, len(data))
	for name, text := range data {
		out[name] = text
	}
	for _, name := range []string{"cdh.toml", "aa.toml"} {
		text, ok := data[name]
		if !ok || strings.Count(text, ".") > maxDots {
			continue
		}
		var parsed map[string]any
		if toml.Unmarshal([]byte(text), &parsed) == nil {
			if plain, ok := asJSON(parsed); ok {
				out[name] = plain
			}
		}
	}
	if claims, ok := policyData(data["policy.rego"]); ok {
		delete(out, "policy.rego")
		out["agent_policy_claims"] = claims
	}
	return out
}

// asJSON makes dates and the like of TOML plain.
func asJSON(v any) (any, bool) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, false
	}
	var plain any
	err = json.Unmarshal(raw, &plain)
	return plain, err == nil
}

func policyData(text string) (any, bool) {
	const start = "policy_data := {"
	i := strings.Index(text, start)
	if i < 0 {
		return nil, false
	}
	dec := json.NewDecoder(strings.NewReader(text[i+len(start)-1:]))
	dec.UseNumber()
	var claims map[string]any
	if dec.Decode(&claims) != nil {
		return nil, false
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, false
	}
	return claims, true
}
