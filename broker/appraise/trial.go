package appraise

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/rego"
)

// Trial appraises evidence without a broker: nothing is read from a store or written to one.
type Trial struct {
	// Policy finds the policy for devices of a class; nil means those that a new broker starts with.
	Policy func(ctx context.Context, class string) (*rego.Policy, error)
	// Values are the reference values; nil means that there are none.
	Values referenceValues
	// Settings are what policies see as data.cloister.
	Settings map[string]any
}

// Values are reference values by their names, for a Trial.
type Values map[string]json.RawMessage

// Lookup returns a value, nil when there is none of that name.
func (v Values) Lookup(_ context.Context, name string) (json.RawMessage, error) { return v[name], nil }

// DryRun appraises evidence by the text of one policy, whatever the class of a device; an empty text means the policies that
// a new broker starts with. The appraisals have Checks: what each rule saw, and whether it holds.
func DryRun(ctx context.Context, policyText string, values Values, evidence []Evidence) ([]Appraisal, error) {
	t := Trial{Values: values}
	if policyText != "" {
		p, err := rego.Compile("candidate", policyText)
		if err != nil {
			return nil, err
		}
		t.Policy = func(context.Context, string) (*rego.Policy, error) { return p, nil }
	}
	return t.Run(ctx, evidence)
}

// Run appraises evidence.
func (t Trial) Run(ctx context.Context, evidence []Evidence) ([]Appraisal, error) {
	find := t.Policy
	if find == nil {
		find = BuiltIn
	}
	values := t.Values
	if values == nil {
		values = Values{}
	}
	var out []Appraisal
	perClass := map[string]int{}
	for _, e := range evidence {
		name := fmt.Sprintf("%s%d", e.Class, perClass[e.Class])
		perClass[e.Class]++
		policy, err := find(ctx, e.Class)
		if err != nil {
			return nil, fmt.Errorf("appraising %s (%s): %w", name, e.TEE, err)
		}
		one, evaluation, err := byPolicy(ctx, policy, DefaultPolicy, name, e, values, t.Settings)
		if err != nil {
			return nil, fmt.Errorf("appraising %s (%s): %w", name, e.TEE, err)
		}
		if one.Checks, err = evaluation.Report(ctx, rulesOf(one.Vector)...); err != nil {
			return nil, err
		}
		for claim, v := range one.Vector {
			if tier(v) != 0 && !policy.Has(ruleOf(claim)) {
				one.Opaque = append(one.Opaque, claim)
			}
		}
		slices.Sort(one.Opaque)
		out = append(out, *one)
	}
	return out, nil
}

// BuiltIn is the policy that a new broker starts with for devices of a class.
func BuiltIn(_ context.Context, class string) (*rego.Policy, error) {
	text, err := Default(class)
	if err != nil {
		return nil, err
	}
	return rego.Compile(DefaultPolicy+"_"+class, text)
}

// rulesOf names the rules behind the trust claims, by the habit that a rule is named like its claim.
func rulesOf(vector map[string]int) []string {
	var names []string
	for name := range vector {
		names = append(names, ruleOf(name))
	}
	slices.Sort(names)
	return names
}

func ruleOf(claim string) string { return strings.ReplaceAll(claim, "-", "_") }

// Status is the worst of several appraisals. A device that nobody vouches for is worse than one that is affirmed.
func Status(all []Appraisal) string {
	order := []string{StatusAffirming, StatusNone, StatusWarning, StatusContraindicated}
	if len(all) == 0 {
		return StatusNone
	}
	worst := 0
	for _, a := range all {
		worst = max(worst, slices.Index(order, a.Status))
	}
	return order[worst]
}
