package console

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"regexp"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
)

var policyID = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\z`)

// starter is what the editor of a new policy begins with: it approves of nothing.
const starter = `package policy

import rego.v1

# 2 and 3 are good, 33 and more are not. What no rule below approves keeps its default.
default hardware := 97

default executables := 33

default configuration := 36

trust_claims := {
	"hardware": hardware,
	"executables": executables,
	"configuration": configuration,
}
`

type policiesBody struct {
	IDs         []string
	MayResource bool
	MayCreate   bool
}

func (c *Console) policies(v *visit) error {
	ids, err := c.AttestationPolicies.IDs(v.r.Context())
	if err != nil {
		return err
	}
	b := policiesBody{IDs: ids, MayResource: v.may(callResourcePolicy()), MayCreate: v.may(callPutPolicy())}
	return v.show("policies", "Policies", root+"policies", b)
}

// openPolicy goes to the editor of a policy whose id was typed in.
func (c *Console) openPolicy(v *visit) error {
	id := v.r.URL.Query().Get("id")
	if !policyID.MatchString(id) {
		return status{http.StatusBadRequest, "A policy id has up to 128 letters, digits, '_', '-' and inner '.', such as default_cpu."}
	}
	http.Redirect(v.w, v.r, root+"policies/attestation/"+url.PathEscape(id), http.StatusSeeOther)
	return nil
}

// fault is one thing that the compiler says.
type fault struct {
	Line    int
	Message string
}

type policyBody struct {
	ID       string
	Resource bool
	New      bool
	Text     string
	// Stored is the digest of the text that the editor began with, Reviewed that of the text whose changes were shown.
	Stored, Reviewed string
	Faults           []fault
	// Shown tells that Changes are those of the text; none means that it is what is stored.
	Shown   bool
	Changes []diffLine
	Added   int
	Removed int
	DryRun  *dryRunBody
	// CanDryRun tells that stored attestations can be appraised with the text; Records are those to choose from.
	CanDryRun bool
	Records   []decision.Record
	Chosen    string
	MayWrite  bool
	MaxText   int
}

// opened is the policy that a path names.
type opened struct {
	id     string
	set    policySet
	isRes  bool
	path   string
	stored string
	isNew  bool
}

func (c *Console) opened(v *visit) (*opened, error) {
	o := &opened{id: v.r.PathValue("id"), set: c.AttestationPolicies}
	if o.id == "" {
		o.id, o.set, o.isRes = resource.PolicyID, c.ResourcePolicies, true
	}
	if !policyID.MatchString(o.id) {
		return nil, status{http.StatusNotFound, "There is no policy of such an id."}
	}
	o.path = root + "policies/attestation/" + o.id
	if o.isRes {
		o.path = root + "policies/resource"
	}
	var err error
	o.stored, err = o.set.Text(v.r.Context(), o.id)
	if errors.Is(err, rego.ErrUnknown) {
		o.isNew, err = true, nil
	}
	return o, err
}

// digest names a text of a policy; that of none is "".
func (o *opened) digest() string {
	if o.isNew {
		return ""
	}
	return digestOf(o.stored)
}

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// policy shows the editor.
func (c *Console) policy(v *visit) error {
	o, err := c.opened(v)
	if err != nil {
		return err
	}
	b := policyBody{Text: o.stored, Stored: o.digest()}
	if o.isNew && !o.isRes {
		b.Text = starter
	}
	b.Chosen = v.r.URL.Query().Get("record")
	return c.edit(v, o, http.StatusOK, "", b)
}

// edit shows the editor with a text.
func (c *Console) edit(v *visit, o *opened, code int, problem string, b policyBody) error {
	b.ID, b.Resource, b.New, b.MaxText = o.id, o.isRes, o.isNew, rego.MaxText
	b.MayWrite = v.may(callPutPolicy())
	section := root + "policies"
	if o.isRes {
		b.MayWrite = v.may(callPutResourcePolicy())
	}
	if c.DryRun != nil && !o.isRes && v.may(callDecisions()) {
		b.CanDryRun = true
		var err error
		if b.Records, err = c.Decisions.List(v.r.Context(), decision.ListOptions{Kind: decision.KindAttestation, Limit: pageSize}); err != nil {
			return err
		}
	}
	return v.showWith(code, "policy", "Policy "+o.id, section, problem, b)
}

// changePolicy reviews, tries out or saves the text of the editor.
func (c *Console) changePolicy(v *visit) (*plan, error) {
	o, err := c.opened(v)
	if err != nil {
		return nil, err
	}
	text := lines(v.r.PostFormValue("text"))
	if len(text) > rego.MaxText {
		return nil, status{http.StatusRequestEntityTooLarge, "The policy is too long."}
	}
	b := policyBody{Text: text, Stored: v.r.PostFormValue("stored"), Chosen: v.r.PostFormValue("record")}
	read := callPolicies()
	if o.isRes {
		read = callResourcePolicy()
	}
	if err := v.need(read); err != nil { // before the compiler works for somebody
		return nil, err
	}
	_, err = rego.Compile(o.id, text)
	b.Faults = faults(err)
	show := func(code int, problem string) *plan {
		return &plan{call: read, show: func(v *visit) error { return c.edit(v, o, code, problem, b) }}
	}
	if err != nil {
		return show(http.StatusUnprocessableEntity, "The policy cannot be used as it is; nothing was changed."), nil
	}
	switch v.r.PostFormValue("action") {
	case "dry-run":
		return c.planDryRun(o, b)
	case "review":
		b.review(o)
		return show(http.StatusOK, ""), nil
	case "save":
		if v.r.PostFormValue("reviewed") != digestOf(text) {
			b.review(o)
			return show(http.StatusOK, "The text changed after its changes were shown. Look at them once more, then save."), nil
		}
		if b.Stored != o.digest() {
			b.Stored = o.digest()
			b.review(o)
			return show(http.StatusConflict, "Somebody else saved this policy meanwhile; nothing was changed. "+
				"The changes below are against the new text."), nil
		}
		return c.planSave(o, b), nil
	}
	return nil, status{http.StatusBadRequest, "The form asks for nothing that can be done."}
}

func (b *policyBody) review(o *opened) {
	b.Reviewed, b.Shown = digestOf(b.Text), true
	b.Changes, b.Added, b.Removed = diff(o.stored, b.Text)
}

func (c *Console) planDryRun(o *opened, b policyBody) (*plan, error) {
	if c.DryRun == nil || o.isRes || !decision.ValidID(b.Chosen) {
		return nil, status{http.StatusBadRequest, "Choose an attestation to try the policy on."}
	}
	// What a dry run tells is what the record and the policy tell.
	return &plan{call: callDecision(b.Chosen), show: func(v *visit) error {
		if err := v.need(callPolicies()); err != nil {
			return err
		}
		b.DryRun = c.dryRun(v, b.Chosen, o.id, b.Text)
		return c.edit(v, o, http.StatusOK, "", b)
	}}, nil
}

func (c *Console) planSave(o *opened, b policyBody) *plan {
	p := &plan{
		call: callPutPolicy(), event: "attestation-policy", subject: o.id, policy: o.id,
		do:   func(ctx context.Context, _ string) error { return o.set.Put(ctx, o.id, b.Text) },
		done: "Policy " + o.id + " is saved and in force.", next: o.path,
		failed: func(v *visit, err error) error {
			return c.edit(v, o, http.StatusUnprocessableEntity, "The policy was not saved: "+err.Error(), b)
		},
	}
	if o.isRes {
		p.call, p.event = callPutResourcePolicy(), "resource-policy"
	}
	return p
}

// faults lists what the compiler says with its lines.
func faults(err error) []fault {
	if err == nil {
		return nil
	}
	const most = 20
	var list ast.Errors
	if !errors.As(err, &list) {
		return []fault{{Message: err.Error()}}
	}
	out := []fault{}
	for _, e := range list {
		if len(out) == most {
			break
		}
		f := fault{Message: e.Message}
		if e.Location != nil {
			f.Line = e.Location.Row
		}
		out = append(out, f)
	}
	return out
}
