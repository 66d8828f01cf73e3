package judge

import "encoding/json"

// message finds the evidence in a saved attestation message of a guest (kbs-protocol.md): the member tee-evidence, whose evidence is
// its primary_evidence, each as JSON or as text of JSON. Anything else comes back as it is, with others false. Others tells
// whether there was evidence of more devices, which is not judged along.
func message(data []byte) (evidence []byte, others bool) {
	for _, member := range []string{"tee-evidence", "primary_evidence"} {
		var m map[string]json.RawMessage
		if !isJSON(data) || json.Unmarshal(data, &m) != nil || len(m[member]) == 0 {
			continue
		}
		if more := string(m["additional_evidence"]); more != "" && more != "null" && more != `""` && more != "{}" && more != `"{}"` {
			others = true
		}
		data = m[member]
		var text string
		if json.Unmarshal(data, &text) == nil {
			data = []byte(text)
		}
	}
	return data, others
}
