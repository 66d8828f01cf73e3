package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
)

// advice is one expression of a policy that does not hold, and what to do about it.
type advice struct {
	Part string `json:"part,omitempty"`
	rego.Finding
	Accepted []json.RawMessage `json:"accepted,omitempty"`
	Nearest  *near             `json:"nearest,omitempty"`
	// Note says what is known of the value got.
	Note string `json:"note,omitempty"`
	// Do is what helps: a command, or words.
	Do string `json:"do,omitempty"`
	// Command tells that Do is a command that approves the value.
	Command bool `json:"command,omitempty"`
}

// advise says what to do about a finding. The records are those of the broker, nil when it was not asked.
func advise(part string, f rego.Finding, records []refstore.Record, now time.Time) advice {
	a := advice{Part: part, Finding: f, Accepted: acceptedOf(f)}
	switch {
	case f.Claim == "":
		a.Do = "read the expression: it looks at no claim of the evidence, so no reference value helps"
	case f.Got == nil:
		a.Note = "the evidence has no such claim"
		a.Do = "nothing to approve: the guest's hardware or its attester did not tell it, or the broker left it out of the record"
	case f.Reference != "":
		a.Nearest = nearest(f.Got, a.Accepted)
		a.Note = historyOf(f, records, now)
		if a.Do, a.Command = addCommand(f); noInitdata(f) {
			a.Note = "the guest was started without initdata: who approves that approves whatever its image then allows"
			a.Do, a.Command = "start the guest with its initdata (`cloister run --initdata FILE`)", false
		}
	default:
		a.Do = remedyOf(f.Claim)
	}
	return a
}

// adviseAll is the advice on findings; what several expressions say of one claim is said once.
func adviseAll(part string, findings []rego.Finding, records []refstore.Record, now time.Time) []advice {
	var out []advice
	said := map[[2]string]bool{}
	for _, f := range findings {
		key := [2]string{f.Claim, f.Reference}
		if f.Reference != "" && said[key] {
			continue
		}
		said[key] = true
		out = append(out, advise(part, f, records, now))
	}
	return out
}

// noInitdata tells whether the evidence says that there was no initdata: the field for its digest is empty.
func noInitdata(f rego.Finding) bool {
	var text string
	return f.Claim == "init_data" && json.Unmarshal(f.Got, &text) == nil && strings.Trim(text, "0") == ""
}

// acceptedOf are the values that an expression would have accepted.
func acceptedOf(f rego.Finding) []json.RawMessage {
	if f.Expected == nil || string(f.Expected) == "null" {
		return nil
	}
	var list []json.RawMessage
	if f.Reference != "" && json.Unmarshal(f.Expected, &list) == nil {
		return list
	}
	return []json.RawMessage{f.Expected}
}

// historyOf looks for a value among those of the broker that do not count any more, or have another name.
func historyOf(f rego.Finding, records []refstore.Record, now time.Time) string {
	var text string
	if json.Unmarshal(f.Got, &text) != nil || len(text) < 8 {
		return "" // what is short is found in many places by chance
	}
	for _, r := range records {
		for _, e := range r.Elements {
			var other string
			if json.Unmarshal(e.Value, &other) != nil || !strings.EqualFold(other, text) {
				continue
			}
			who := ""
			if len(e.Approvals) > 0 && e.Approvals[0].Group != "" {
				who = fmt.Sprintf(" for group %q", printable(e.Approvals[0].Group))
			}
			if until := e.Expiration(); !now.Before(until) {
				return fmt.Sprintf("it was approved%s as %s and ended on %s", who, r.Name, until.Local().Format("2006-01-02"))
			}
			if r.Name != f.Reference {
				return fmt.Sprintf("it is approved%s, but as %s: are names mixed up?", who, r.Name)
			}
			return fmt.Sprintf("by now it is approved%s: let the guest try again", who)
		}
	}
	return ""
}

// maxArgument bounds a value in a command that a person copies.
const maxArgument = 1024

// safeArgument is what a shell takes as it is; quotable is what stands between single quotes without harm to it or a terminal.
var (
	safeArgument = regexp.MustCompile(`\A[A-Za-z0-9_./:+=@][A-Za-z0-9_./:+=@-]*\z`)
	quotable     = regexp.MustCompile(`\A[ -&(-~]+\z`)
)

// addCommand is the command that approves the value of a finding. The value comes from a guest: one that a shell or a
// terminal could take for something else gets no command.
func addCommand(f rego.Finding) (do string, command bool) {
	words := []string{"cloister refvalue add"}
	var text string
	if json.Unmarshal(f.Got, &text) != nil {
		text = string(f.Got)
		words = append(words, "--literal")
	}
	if single(f) {
		words = append(words, "--single")
	}
	for _, word := range []string{f.Reference, text} {
		switch {
		case len(word) > maxArgument || !quotable.MatchString(word) || word[0] == '-':
			return "put the value into a file, {\"" + printable(f.Reference) + "\": [VALUE]}, and `cloister refvalue add FILE`: it does not fit a command line", false
		case safeArgument.MatchString(word):
			words = append(words, word)
		default:
			words = append(words, "'"+word+"'")
		}
	}
	return strings.Join(words, " "), true
}

var comparison = regexp.MustCompile(`==|!=|<|>`)

// single tells whether a policy takes one value of a reference value, not a list.
func single(f rego.Finding) bool {
	if f.Expected != nil && string(f.Expected) != "null" {
		return f.Expected[0] != '['
	}
	return comparison.MatchString(f.Expression)
}

// remedies are what helps against claims that no reference value approves, by the end of their names.
var remedies = []struct{ claim, do string }{
	{"tcb_status", "the platform's firmware or microcode is not up to date: who owns the host has to update it"},
	{"collateral_expiration_status", "the broker's collateral has expired: let it reach the vendor, or `cloister collateral fetch` and `import`"},
	{"cert_revocation", "the broker could not ask whether AMD revoked the chip: let it reach AMD's KDS, or `cloister collateral fetch` and `import`"},
	{"cert_validity", "a certificate of the chip is outside of its time: check the broker's clock, and fetch a new one with `cloister collateral fetch`"},
	{"cert-ocsp-status", "the broker could not ask whether NVIDIA revoked the device, or it did: `cloister collateral fetch`, or look at the device"},
	{"debug_allowed", "the guest was started so that its host may look inside: start it without debugging"},
	{"debug", "the guest was started so that its host may look inside: start it without debugging"},
	{"dbgstat", "the device is in debug mode: switch that off"},
	{"secboot", "the device did not boot with secure boot: look at the device"},
	{"migrate_ma", "the guest may be moved by a migration agent: start it without one"},
	{"ak_endorsement", "the TPM is of no maker that the broker trusts: `cloister doctor --tpm-ca FILE`, then `cloister-broker serve --tpm-ek-roots FILE`; or approve its key as trusted_aks"},
	{"measres", "the device's firmware is not what NVIDIA signed: update driver and VBIOS"},
}

func remedyOf(claim string) string {
	name := strings.TrimRight(claim, `"]`)
	for _, r := range remedies {
		if strings.HasSuffix(name, r.claim) {
			return r.do
		}
	}
	return "no reference value approves this: change the guest, or the policy"
}
