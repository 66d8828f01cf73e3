package appraise

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/cloister/cloister/broker/rego"
)

// TestDryRunIsAppraise gives the same as the real thing, and tells of every rule.
func TestDryRunIsAppraise(t *testing.T) {
	values := Values{}
	for name, v := range good {
		values[name] = json.RawMessage(v)
	}
	for name, change := range map[string]map[string]any{"approved": nil, "other kernel": {"pcr04": "bad0"}, "unknown key": {"ak_endorsement": "none"}} {
		a, _ := newAppraiser(t, good, false)
		want, err := a.Appraise(t.Context(), DefaultPolicy, tpmEvidence(change))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DryRun(t.Context(), "", values, tpmEvidence(change))
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Status != want[0].Status || len(got[0].Findings) != len(want[0].Findings) || got[0].PolicyID != want[0].PolicyID {
			t.Errorf("%s: dry run %+v, want %+v", name, got[0], want[0])
		}
		failed := map[string]bool{}
		for _, c := range got[0].Checks {
			if !c.Holds && !c.Other {
				failed[c.Claim] = true
			}
		}
		for _, f := range got[0].Findings {
			if !failed[f.Claim] {
				t.Errorf("%s: finding %s is no failed check", name, f)
			}
		}
	}
	if _, err := DryRun(t.Context(), "package x", nil, tpmEvidence(nil)); !errors.Is(err, rego.ErrPolicy) {
		t.Errorf("a policy of another package: %v", err)
	}
	if _, err := DryRun(t.Context(), "", nil, []Evidence{{TEE: "x", Class: "moon"}}); err == nil {
		t.Error("there is a policy for moons")
	}
}

func TestStatus(t *testing.T) {
	for want, all := range map[string][]string{
		StatusNone: {StatusAffirming, StatusNone}, StatusAffirming: {StatusAffirming, StatusAffirming},
		StatusWarning: {StatusNone, StatusWarning, StatusAffirming}, StatusContraindicated: {StatusContraindicated, StatusWarning},
	} {
		var list []Appraisal
		for _, s := range all {
			list = append(list, Appraisal{Status: s})
		}
		if got := Status(list); got != want {
			t.Errorf("of %q: %s, want %s", all, got, want)
		}
	}
	if got := Status(nil); got != StatusNone {
		t.Errorf("of nothing: %s", got)
	}
}
