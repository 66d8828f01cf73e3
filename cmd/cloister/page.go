package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
)

// page prints explanations for a person who was woken up for them: what happened first, then why, then what to do. Values
// of guests are printed without what could steer a terminal.
type page struct {
	w    io.Writer
	full bool
}

// rows prints lines in columns.
func (p page) rows(rows [][]string) {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 4, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	for line := range strings.Lines(out.String()) {
		fmt.Fprintln(p.w, strings.TrimRight(line, " \n"))
	}
}

func (p page) explanation(x *explanation) {
	r := x.Record
	attestation := r
	if r.Attestation != nil {
		attestation = r.Attestation
	}
	fmt.Fprintln(p.w, headline(r, attestation))
	rows := [][]string{}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{"  " + name, printable(value)})
		}
	}
	add("request", r.ID)
	if !r.Time.IsZero() {
		add("time", r.Time.Local().Format("2006-01-02 15:04:05"))
	}
	add("resource", r.Subject)
	add("tee", attestation.TEE)
	if r.AttestationID != "" && r.AttestationID != r.ID {
		add("attestation", r.AttestationID)
	}
	p.rows(rows)
	if r.Kind == decision.KindResource {
		p.resource(r)
	}
	for _, part := range attestation.Parts {
		p.part(part)
		for _, a := range x.Advice {
			if a.Part == part.Name {
				p.advice(a)
			}
		}
	}
	if len(x.Groups) > 0 {
		fmt.Fprintln(p.w)
	}
	for _, g := range x.Groups {
		line := fmt.Sprintf("nearest group: %s: the guest shows %d of its %d values", printable(g.Group), g.Matches, g.Of)
		if len(g.Not) > 0 {
			line += ", not " + printable(strings.Join(g.Not, ", "))
		}
		fmt.Fprintln(p.w, line)
	}
	for i, n := range x.Notes {
		if i == 0 {
			fmt.Fprintln(p.w)
		}
		fmt.Fprintf(p.w, "note: %s\n", printable(n))
	}
	for _, a := range x.Advice {
		if a.Command {
			fmt.Fprintln(p.w, "\nApprove a value only when you know where it comes from: an attacker's guest shows unknown values, too. Those of your own\n"+
				"guest are computed by `cloister refvalue compute`.")
			break
		}
	}
}

// headline says in one line what happened.
func headline(r, attestation *decision.Record) string {
	var bad []string
	for _, p := range attestation.Parts {
		if p.Status != appraise.StatusAffirming {
			bad = append(bad, printable(p.Name+" is "+p.Status))
		}
	}
	genuine := "the evidence is genuine and approved"
	if len(bad) > 0 {
		genuine = "the evidence is genuine, but not approved: " + strings.Join(bad, ", ")
	}
	switch {
	case r.Kind == decision.KindAttestation:
		if len(bad) > 0 {
			return "NOT APPROVED: " + genuine
		}
		return "APPROVED: " + genuine
	case r.Decision == "deny" && len(attestation.Parts) == 0:
		return "REFUSED: " + printable(r.Reason)
	case r.Decision == "deny" && len(bad) == 0:
		return "REFUSED by the resource policy, although " + genuine
	case r.Decision == "deny":
		return "REFUSED: " + genuine
	}
	return printable(strings.ToUpper(r.Decision)) + ": " + genuine
}

// resource says what of the resource policy did not hold, and of which part of the guest.
func (p page) resource(r *decision.Record) {
	for _, f := range r.Findings {
		fmt.Fprintf(p.w, "\n%s line %d, rule %s, does not hold\n", printable(f.Policy), f.Line, printable(f.Rule))
		rows := [][]string{{"  rule", p.text(f.Expression)}}
		if f.Claim != "" {
			rows = append(rows, []string{"  got", printable(f.Claim) + " = " + p.value(f.Got)})
		}
		if f.Expected != nil {
			rows = append(rows, []string{"  accepted", p.value(f.Expected)})
		}
		p.rows(rows)
	}
	if r.Attestation == nil {
		return
	}
	var rows [][]string
	for _, part := range r.Attestation.Parts {
		mark := ""
		if part.Status != appraise.StatusAffirming {
			mark = "<- this part of the guest is not affirmed"
		}
		rows = append(rows, []string{"  " + printable(part.Name), printable(part.Status), mark})
	}
	if len(rows) > 0 {
		fmt.Fprintln(p.w, "\nwhat the resource policy saw of the guest")
		p.rows(rows)
	}
}

// part prints an appraisal: its trust vector in words.
func (p page) part(part decision.Part) {
	fmt.Fprintf(p.w, "\n%s (%s): %s, by policy %s\n", printable(part.Name), printable(part.TEE), printable(part.Status), printable(part.Policy))
	var rows [][]string
	for _, name := range sortedKeys(part.Vector) {
		if v := part.Vector[name]; v != 0 {
			rows = append(rows, []string{"  " + printable(name), fmt.Sprint(v), meaning(printable(name), v)})
		}
	}
	p.rows(rows)
}

// advice prints one rule that does not hold.
func (p page) advice(a advice) {
	fmt.Fprintf(p.w, "\n  %s line %d: %s\n", printable(a.Rule), a.Line, p.text(a.Expression))
	var rows [][]string
	add := func(name, value string) { rows = append(rows, []string{"    " + name, value}) }
	if a.Claim != "" {
		add("claim", printable(a.Claim))
		add("got", p.value(a.Got))
	}
	switch {
	case a.Reference == "" && a.Accepted != nil:
		add("accepted", p.value(a.Accepted[0]))
	case a.Reference == "":
	case len(a.Accepted) == 0:
		add("accepted", "nothing: no reference value "+printable(a.Reference)+" is registered")
	default:
		most := 4
		if p.full {
			most = len(a.Accepted)
		}
		for i, v := range a.Accepted[:min(most, len(a.Accepted))] {
			label := ""
			if i == 0 {
				label = "accepted"
			}
			add(label, p.value(v))
		}
		if n := len(a.Accepted) - most; n > 0 {
			add("", fmt.Sprintf("and %d more values of %s: --full", n, printable(a.Reference)))
		}
	}
	if a.Nearest != nil {
		add("nearest", p.value(a.Nearest.Value)+": "+a.Nearest.Differs)
		if got, near, ok := sideBySide(a.Got, a.Nearest); ok {
			add("", "got      "+got)
			add("", "accepted "+near)
		}
	}
	if a.Note != "" {
		add("known", printable(a.Note))
	}
	if a.Do != "" {
		add("do", a.Do)
	}
	p.rows(rows)
}

// check prints one expression of a dry run that holds, in a line.
func (p page) check(c rego.Check) []string {
	what, got := p.text(c.Expression), ""
	if c.Claim != "" {
		what, got = printable(c.Claim), p.value(c.Got)
	}
	accepted := ""
	switch {
	case c.Reference != "" && (c.Expected == nil || string(c.Expected) == "null"):
		accepted = "nothing is registered as " + printable(c.Reference)
	case c.Reference != "":
		values := acceptedOf(c.Finding)
		accepted = fmt.Sprintf("one of %d", len(values))
		if len(values) == 1 {
			accepted = p.value(values[0])
		}
		accepted += " of " + printable(c.Reference)
	case c.Expected != nil:
		accepted = p.value(c.Expected)
	}
	mark := "ok"
	if !c.Holds {
		mark = "NO"
	}
	return []string{"  " + mark, c.Of, what, got, accepted}
}

// text is an expression on one line.
func (p page) text(s string) string {
	const most = 100
	s = printable(strings.Join(strings.Fields(s), " "))
	if !p.full && len(s) > most {
		s = s[:most] + ".."
	}
	return s
}

// value is a value, shortened unless all of it is wanted.
func (p page) value(raw json.RawMessage) string {
	if raw == nil {
		return "absent"
	}
	const most = 120
	var prose string
	if json.Unmarshal(raw, &prose) == nil && strings.Contains(prose, " ") && len(prose) <= most {
		return printable(prose)
	}
	return shortValue(raw, p.full)
}

// claims shows the claims a person compares: registers and identities, not the event log.
func (p page) claims(tee string, evidence json.RawMessage) {
	var top map[string]json.RawMessage
	if json.Unmarshal(evidence, &top) != nil {
		return
	}
	var claims map[string]any
	if json.Unmarshal(top[tee], &claims) != nil {
		return
	}
	var rows [][]string
	for _, name := range sortedKeys(claims) {
		text, ok := claims[name].(string)
		if !ok || name == "ak_public" || strings.Trim(text, "0") == "" {
			continue
		}
		rows = append(rows, []string{"  " + printable(name), printable(text)})
	}
	p.rows(rows)
}

// sideBySide cuts two values of hex around the first byte that differs, and puts brackets around what differs.
func sideBySide(got json.RawMessage, n *near) (a, b string, ok bool) {
	var x, y string
	if n.at < 0 || json.Unmarshal(got, &x) != nil || json.Unmarshal(n.Value, &y) != nil || len(x) != len(y) {
		return "", "", false
	}
	const around = 8 // hex digits
	from, to := max(0, 2*n.at-around), min(len(x), 2*n.at+2+2*around)
	mark := func(s, other string) string {
		var out strings.Builder
		if from > 0 {
			out.WriteString("..")
		}
		for i := from; i+1 < to; i += 2 {
			if strings.EqualFold(s[i:i+2], other[i:i+2]) {
				out.WriteString(s[i : i+2])
			} else {
				out.WriteString("[" + s[i:i+2] + "]")
			}
		}
		if to < len(s) {
			out.WriteString("..")
		}
		return out.String()
	}
	return mark(x, y), mark(y, x), true
}

// meaning puts an AR4SI trust claim into words (draft-ietf-rats-ar4si).
func meaning(claim string, value int) string {
	switch {
	case value >= 2 && value < 32, value <= -2 && value >= -32:
		return "affirming"
	case value >= 32 && value < 96, value < -32 && value >= -96:
		return "warning: " + claim + " is not what was expected"
	case value >= 96, value < -96:
		return "contraindicated: " + claim + " is not recognised"
	}
	return "no claim"
}
