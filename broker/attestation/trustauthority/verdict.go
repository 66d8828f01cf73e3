package trustauthority

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/wire/kbs"
)

// Names in the claims of a token.
const (
	claimRuntime   = "attester_runtime_data"
	claimUserData  = "attester_user_data" // Azure: there the runtime data are the paravisor's
	claimTCB       = "attester_tcb_status"
	claimDebug     = "dbgstat"
	claimGPU       = "nvgpu"
	claimUnmatched = "policy_ids_unmatched"

	upToDate = "UpToDate"
	disabled = "disabled"
)

// policyName is what records call the policies of the service.
const policyName = "intel-trust-authority"

// record checks that a token is about a request and tells what it says.
func (c *Client) record(id string, claims map[string]any, r *request) (*decision.Record, error) {
	part, name := "tdx", claimRuntime
	if r.tee == teeSGX {
		part = "sgx"
	}
	if r.azure {
		name = claimUserData
	}
	machine, ok := claims[part].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is %T, want the claims about the guest", part, claims[part])
	}
	bound, ok := machine[name].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s.%s is %T, want the object that was sent", part, name, machine[name])
	}
	got, err := kbs.Canonical(bound)
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", part, name, err)
	}
	if !bytes.Equal(got, r.runtime) {
		return nil, fmt.Errorf("%s.%s is %.200s, want %.200s: it is about another request", part, name, got, r.runtime)
	}
	gpu, ok := claims[claimGPU].(map[string]any)
	if r.body.GPU != nil && !ok {
		return nil, fmt.Errorf("%s is %T, although evidence of GPUs was sent", claimGPU, claims[claimGPU])
	}
	if r.body.MustMatch {
		for where, m := range map[string]map[string]any{"": claims, part + ".": machine, claimGPU + ".": gpu} {
			if v := m[claimUnmatched]; !empty(v) {
				return nil, fmt.Errorf("%s%s is %.200s, want none: the guest does not match the policies", where, claimUnmatched, short(v))
			}
		}
	}
	rec := &decision.Record{ID: id, Time: c.now().UTC(), Kind: decision.KindAttestation, Decision: audit.Allow, TEE: r.tee}
	cpu, err := c.part("cpu0", r.tee, part, machine, claims)
	if err != nil {
		return nil, err
	}
	rec.Parts = []decision.Part{*cpu}
	if r.body.GPU == nil {
		return rec, nil
	}
	kept, err := attestation.KeptEvidence(map[string]any{claimGPU: gpu})
	if err != nil {
		return nil, err
	}
	// What the service makes of GPUs is in claims whose names are NVIDIA's; they are kept, and for the resource policy to judge.
	rec.Parts = append(rec.Parts, decision.Part{
		Name: "gpu0", TEE: teeGPU, Status: appraise.StatusNone, Policy: policyName, Vector: map[string]int{}, Evidence: kept,
	})
	return rec, nil
}

// part is the verdict about the machine as records have it. The service gives no trust vector: its status is that of the TCB.
func (c *Client) part(name, tee, member string, machine, claims map[string]any) (*decision.Part, error) {
	kept := map[string]any{member: machine}
	for k, v := range claims {
		if k != member && k != claimGPU {
			kept[k] = v
		}
	}
	evidence, err := attestation.KeptEvidence(kept)
	if err != nil {
		return nil, err
	}
	p := &decision.Part{Name: name, TEE: tee, Status: appraise.StatusAffirming, Policy: policyName, Vector: map[string]int{},
		Evidence: evidence}
	want := map[string]string{claimTCB: upToDate, claimDebug: disabled}
	for _, claim := range slices.Sorted(maps.Keys(want)) {
		if machine[claim] == want[claim] {
			continue
		}
		p.Status = appraise.StatusWarning
		f := rego.Finding{Policy: policyName, Rule: claim, Expression: claim + " == " + want[claim], Claim: member + "." + claim}
		if v, ok := machine[claim]; ok {
			f.Got = json.RawMessage(short(v))
		}
		if f.Expected, err = json.Marshal(want[claim]); err != nil {
			return nil, fmt.Errorf("encoding a finding: %w", err)
		}
		p.Findings = append(p.Findings, f)
	}
	return p, nil
}

// empty reports whether a claim is absent, null or a list without members.
func empty(v any) bool {
	list, ok := v.([]any)
	return v == nil || ok && len(list) == 0
}

// short is a claim as JSON, or a word when it is long.
func short(v any) string {
	raw, err := json.Marshal(v)
	if err != nil || len(raw) > 4<<10 {
		return `"long"`
	}
	return string(raw)
}
