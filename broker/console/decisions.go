package console

import (
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
)

// pageSize is how many rows a list has.
const pageSize = 50

type choice struct {
	Name, Value string
	Chosen      bool
}

type decisionsBody struct {
	Records []decision.Record
	Choices []choice
	Filter  string
	// Older is the id before which the next page is, or "".
	Older   string
	Started bool
}

const filterRefused = "refused"

func (c *Console) attestations(v *visit) error {
	o := decision.ListOptions{Kind: decision.KindAttestation, Before: v.r.URL.Query().Get("before"), Limit: pageSize}
	b := decisionsBody{Filter: v.r.URL.Query().Get("show"), Started: o.Before != ""}
	known := false
	for _, one := range []choice{
		{"All", "", false}, {"Affirming", appraise.StatusAffirming, false}, {"Warning", appraise.StatusWarning, false},
		{"Contraindicated", appraise.StatusContraindicated, false}, {"Refused", filterRefused, false},
	} {
		one.Chosen = one.Value == b.Filter
		known = known || one.Chosen
		b.Choices = append(b.Choices, one)
	}
	switch {
	case !known:
		return status{404, "There is no such filter."}
	case b.Filter == filterRefused:
		o.Decision = audit.Deny
	default:
		o.Status = b.Filter
	}
	return c.showDecisions(v, "attestations", "Attestations", o, b)
}

func (c *Console) refusals(v *visit) error {
	o := decision.ListOptions{
		Kind: decision.KindResource, Decision: audit.Deny, Before: v.r.URL.Query().Get("before"), Limit: pageSize,
	}
	return c.showDecisions(v, "refusals", "Refusals", o, decisionsBody{Started: o.Before != ""})
}

func (c *Console) showDecisions(v *visit, name, title string, o decision.ListOptions, b decisionsBody) error {
	if o.Before != "" && !decision.ValidID(o.Before) {
		return status{404, "There is no such page of the list."}
	}
	var err error
	if b.Records, err = c.Decisions.List(v.r.Context(), o); err != nil {
		return err
	}
	if len(b.Records) == pageSize {
		b.Older = b.Records[pageSize-1].ID
	}
	return v.show(name, title, root+name, b)
}

// part is an appraisal with what its page shows besides.
type part struct {
	decision.Part
	Claims []claim
	Silent int
}

func parts(list []decision.Part) []part {
	out := make([]part, 0, len(list))
	for _, p := range list {
		one := part{Part: p}
		one.Claims, one.Silent = vector(p.Vector)
		out = append(out, one)
	}
	return out
}

type decisionBody struct {
	Record *decision.Record
	// Attestation is the record whose parts are shown: the record itself or the one it relied on.
	Attestation *decision.Record
	Parts       []part
	// MayApprove tells that the visitor could register reference values, MayPolicies that policies can be opened.
	MayApprove, MayPolicies bool
}

func (c *Console) decision(v *visit) error {
	record, err := c.Decisions.Get(v.r.Context(), v.r.PathValue("id"))
	if err != nil {
		return err
	}
	b := decisionBody{Record: record, Attestation: record.Attestation, MayApprove: v.may(callRegister()) && v.may(callReferences()),
		MayPolicies: v.may(callPolicies())}
	title, section := "Refusal", root+"refusals"
	switch {
	case record.Kind == decision.KindAttestation:
		title, section, b.Attestation = "Attestation", root+"attestations", record
	case record.Decision == audit.Allow:
		title = "Release"
	}
	if b.Attestation != nil {
		b.Parts = parts(b.Attestation.Parts)
	}
	return v.show("decision", title, section, b)
}

// dryRunBody is the outcome of a dry run: the parts as they would be, with the status they had.
type dryRunBody struct {
	ID    string
	Parts []dryRunPart
	// Problem is why there is no outcome.
	Problem string
}

type dryRunPart struct {
	part
	// Was is the status of the stored appraisal, "" when there is none of that name.
	Was string
}

// dryRun appraises a stored attestation with a text.
func (c *Console) dryRun(v *visit, id, policy, text string) *dryRunBody {
	b := &dryRunBody{ID: id}
	record, err := c.Decisions.Get(v.r.Context(), id)
	if err != nil {
		b.Problem = err.Error()
		return b
	}
	list, err := c.DryRun.DryRun(v.r.Context(), *record, policy, text)
	if err != nil {
		b.Problem = err.Error()
		return b
	}
	was := map[string]string{}
	for _, p := range record.Parts {
		was[p.Name] = p.Status
	}
	for _, p := range parts(list) {
		b.Parts = append(b.Parts, dryRunPart{part: p, Was: was[p.Name]})
	}
	if len(b.Parts) == 0 {
		b.Problem = "This attestation has no part that policy " + clip(policy,
			128) + " is for. " +
			"The end of a policy's id says which class of device it is for, such as _cpu."
	}
	return b
}
