package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
)

// ofToken makes of a token what a broker keeps as a record. A token has no findings: with the reference values of a broker,
// they are made anew.
func (a *app) ofToken(ctx context.Context, s *dryrun.Saved) (*decision.Record, []string, error) {
	devices, err := s.Claims()
	if err != nil {
		return nil, nil, err
	}
	id, _ := s.Token["jti"].(string)
	r := &decision.Record{ID: id, Kind: decision.KindAttestation, Decision: "token", TEE: devices[0].TEE}
	if at, ok := s.Token["iat"].(json.Number); ok {
		if n, err := at.Int64(); err == nil {
			r.Time = time.Unix(n, 0).UTC()
		}
	}
	records := a.values(ctx)
	values, _ := dryrun.Records(records, time.Now())
	again, err := dryrun.Appraise(ctx, appraise.Trial{Values: values}, devices)
	if err != nil {
		return nil, nil, err
	}
	notes := s.Notes(devices)
	submods, _ := s.Token["submods"].(map[string]any)
	for _, p := range again.Parts {
		told, _ := submods[p.Name].(map[string]any)
		status, _ := told["ear.status"].(string)
		policy, _ := told["ear.appraisal-policy-id"].(string)
		part := decision.Part{Name: p.Name, TEE: p.TEE, Status: status, Policy: policy, Vector: vectorOf(told), Evidence: p.Evidence}
		if status != appraise.StatusAffirming && records != nil {
			part.Findings = p.Findings
			if p.Status != status {
				notes = append(notes, fmt.Sprintf("%s would be %s now, by the policy that a new broker starts with and the broker's reference values of today", p.Name, p.Status))
			}
		}
		r.Parts = append(r.Parts, part)
	}
	switch {
	case records == nil:
		notes = append(notes, "a token has no findings: name its broker (--kbs or --broker-dir) for them")
	default:
		notes = append(notes, "a token has no findings: these are made with the policies that a new broker starts with and the reference values of today")
	}
	return r, notes, nil
}

func vectorOf(submod map[string]any) map[string]int {
	out := map[string]int{}
	claims, _ := submod["ear.trustworthiness-vector"].(map[string]any)
	for name, v := range claims {
		if n, ok := v.(json.Number); ok {
			if i, err := n.Int64(); err == nil && i >= -128 && i <= 127 {
				out[name] = int(i)
			}
		}
	}
	return out
}

// A denial of the guest's own policy, as guest/gate words it.
var (
	gateDenial = regexp.MustCompile(`\b([A-Z][A-Za-z]+Request|[A-Z][A-Za-z]+) is blocked by policy: ?([^\n]*)`)
	errorLine  = regexp.MustCompile(`(?m)^cloister: error: (.*)$`)
)

// gateExplanation is a denial by the guest's own policy.
type gateExplanation struct {
	Request string   `json:"request_type"`
	Reasons []string `json:"reasons"`
	Do      string   `json:"do"`
}

// explainRefusal explains what an error says: a denial of the guest's policy, or one of the broker, of which it names the
// request.
func (a *app) explainRefusal(ctx context.Context, file, text string, saved *dryrun.Saved, full bool) error {
	if saved != nil && saved.Form == dryrun.FormRefusal {
		text = saved.Refusal.Error()
	}
	var line struct{ Error, Request string }
	if saved != nil && saved.Form == dryrun.FormEvidence && json.Unmarshal(saved.Evidence, &line) == nil && line.Error != "" {
		text = line.Error
	} else if saved != nil && saved.Form == dryrun.FormEvidence {
		return hint(fmt.Errorf("%s holds evidence, about which nothing was decided yet", file), "`cloister appraise --dry-run --tee NAME %s` decides about it", file)
	}
	if m := gateDenial.FindStringSubmatch(text); m != nil {
		return a.printGateDenial(m[1], m[2])
	}
	if m := requestID.FindStringSubmatch(text); m != nil {
		if !a.broker.named() {
			return hint(fmt.Errorf("the broker refused request %s, and knows why", m[1]), "`cloister explain %s --kbs URL --admin-token FILE`, or with --broker-dir DIR", m[1])
		}
		r, err := a.record(ctx, m[1], "")
		if err != nil {
			if e := errorLine.FindStringSubmatch(text); e != nil {
				text = e[1]
			}
			return hint(err, "the refusal itself says: %s", printable(strings.TrimSpace(text)))
		}
		return a.printExplanation(ctx, r, nil, full)
	}
	if saved != nil && saved.Form == dryrun.FormRefusal {
		return hint(errors.New(printable(text)), "it names no request: the broker's audit log (`cloister broker audit`) may know more")
	}
	return hint(fmt.Errorf("reading %s: %w", file, dryrun.ErrForm), "want a record of `cloister attest --json`, a token, or the text of a refusal")
}

func (a *app) printGateDenial(request, reasons string) error {
	x := gateExplanation{Request: request, Do: "if the request is meant: make the initdata anew (`cloister policy generate` for pods of Kubernetes, " +
		"`cloister initdata new` for those of `cloister run`), and register its values " +
		"(`cloister refvalue compute`, `cloister refvalue add`); if not: the host asked for something that the pod does not allow"}
	if request == "ExecProcessRequest" {
		x.Do = "if the command is meant: `cloister policy generate --allow-exec COMMAND`, or `cloister initdata new` with the same flag, and register the new values; if not: somebody on the host tried to run it"
	}
	reasons, _, _ = strings.Cut(reasons, " (hint: ") // the runtime's, in events of pods
	for _, r := range strings.Split(reasons, "; ") {
		if r = strings.TrimSpace(r); r != "" {
			x.Reasons = append(x.Reasons, r)
		}
	}
	if a.json {
		return a.printJSON(x)
	}
	fmt.Fprintf(a.stdout, "REFUSED by the guest's own policy, which is in its initdata\n  request  %s\n", x.Request)
	for _, r := range x.Reasons {
		fmt.Fprintf(a.stdout, "  why      %s\n", printable(r))
	}
	fmt.Fprintf(a.stdout, "  do       %s\n", x.Do)
	return nil
}
