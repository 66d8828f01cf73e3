package dryrun

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
)

// Part is the appraisal of one device.
type Part struct {
	decision.Part
	// Checks tell of the rules behind the vector what they saw, and whether they hold.
	Checks []rego.Check `json:"checks"`
	// LeftOut are claims that the record of the evidence does not have, as findings name them.
	LeftOut []string `json:"left_out,omitempty"`
}

// Result is what would come out.
type Result struct {
	// Status is the worst of the parts. It counts only when CannotTell is empty.
	Status string `json:"status"`
	// CannotTell says why it is not known what a broker would decide: the policy reads claims that were not kept.
	CannotTell string `json:"cannot_tell,omitempty"`
	Parts      []Part `json:"parts"`
	// Notes say what the result does not cover.
	Notes []string `json:"notes,omitempty"`
}

// Affirming tells whether every part is affirmed for certain.
func (r *Result) Affirming() bool { return r.CannotTell == "" && r.Status == appraise.StatusAffirming }

// Appraise appraises devices.
func Appraise(ctx context.Context, t appraise.Trial, devices []Device) (*Result, error) {
	var evidence []appraise.Evidence
	for _, d := range devices {
		evidence = append(evidence, d.Evidence)
	}
	appraisals, err := t.Run(ctx, evidence)
	if err != nil {
		return nil, err
	}
	out := &Result{Status: appraise.Status(appraisals)}
	var unknown []string
	for i, a := range appraisals {
		d := devices[i]
		raw, err := json.Marshal(a.Annotated)
		if err != nil {
			return nil, fmt.Errorf("encoding the claims of %s: %w", a.Name, err)
		}
		out.Parts = append(out.Parts, Part{Part: decision.Part{
			Name: a.Name, TEE: d.TEE, Status: a.Status, Policy: a.PolicyID, Vector: a.Vector, Findings: a.Findings, Evidence: raw,
		}, Checks: slices.DeleteFunc(slices.Clone(a.Checks), func(c rego.Check) bool { return c.Other }), LeftOut: d.Lost})
		unknown = append(unknown, d.unknown(a)...)
	}
	if len(unknown) > 0 {
		out.CannotTell = "the record lacks what the policy reads: " + strings.Join(slices.Compact(unknown), ", ")
	}
	return out, nil
}

// unknown names what a policy read, or may have read, of claims that were not kept, when it matters to the status.
func (d *Device) unknown(a appraise.Appraisal) []string {
	if len(d.Lost) == 0 {
		return nil
	}
	var names []string
	for _, c := range a.Checks {
		// A check that fails for want of a claim does no harm where the device is affirmed without it.
		if c.Claim != "" && d.lacks(c.Claim, c.Got != nil) && (c.Holds || a.Status != appraise.StatusAffirming) {
			names = append(names, a.Name+" "+c.Claim)
		}
	}
	for _, claim := range a.Opaque {
		names = append(names, fmt.Sprintf("%s what %s is made of", a.Name, claim))
	}
	slices.Sort(names)
	return names
}

// Notes says what is to be known of the devices of something saved.
func (s *Saved) Notes(devices []Device) []string {
	var notes []string
	switch s.Form {
	case FormToken:
		notes = append(notes, "the claims are those of a token, whose signature was not checked")
	case FormRecord:
		notes = append(notes, "the claims are those that the broker once verified; the evidence itself was not verified again")
	case FormGuest:
		notes = append(notes, "the evidence is bound to its message; whether the nonce was one of the broker's is not known")
	}
	for _, d := range devices {
		if len(d.Lost) > 0 {
			notes = append(notes, fmt.Sprintf("%s: left out of the record: %s", d.TEE, strings.Join(d.Lost, ", ")))
		}
	}
	return notes
}
