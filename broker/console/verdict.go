package console

import (
	"sort"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
)

// The tones of the style sheet.
const (
	toneGood    = "good"
	toneWarn    = "warn"
	toneBad     = "bad"
	toneNeutral = "none"
)

// tone is how a status or decision is coloured; its word is always there too.
func tone(status string) string {
	switch status {
	case appraise.StatusAffirming, audit.Allow:
		return toneGood
	case appraise.StatusWarning:
		return toneWarn
	case appraise.StatusContraindicated, audit.Deny, audit.Error, filterRefused:
		return toneBad
	}
	return toneNeutral
}

// mark is the sign before a status, for who does not see colours.
func mark(status string) string {
	switch tone(status) {
	case toneGood:
		return "✓"
	case toneWarn:
		return "!"
	case toneBad:
		return "✕"
	}
	return "–"
}

// claimMeaning is what AR4SI says of the value of a trust claim.
func claimMeaning(v int) string {
	switch {
	case v >= -1 && v <= 1:
		return appraise.StatusNone
	case v >= -32 && v <= 31:
		return appraise.StatusAffirming
	case v >= -96 && v <= 95:
		return appraise.StatusWarning
	}
	return appraise.StatusContraindicated
}

// worst is the status of a whole attestation: the worst of its parts. One without parts was refused before any appraisal.
func worst(r decision.Record) string {
	if len(r.Parts) == 0 {
		if r.Kind == decision.KindAttestation && r.Decision != audit.Allow {
			return "refused"
		}
		return appraise.StatusNone
	}
	order := map[string]int{
		appraise.StatusNone: 0, appraise.StatusAffirming: 1, appraise.StatusWarning: 2, appraise.StatusContraindicated: 3,
	}
	status, at := appraise.StatusNone, 0
	for _, p := range r.Parts {
		n, known := order[p.Status]
		if !known {
			n = 3
		}
		if n > at {
			status, at = p.Status, n
		}
	}
	return status
}

// claim is one member of a trust vector.
type claim struct {
	Name    string
	Value   int
	Meaning string
}

// vector lists a trust vector, the worst first, without what nobody said anything about.
func vector(v map[string]int) (said []claim, silent int) {
	for name, n := range v {
		c := claim{name, n, claimMeaning(n)}
		if c.Meaning == appraise.StatusNone {
			silent++
			continue
		}
		said = append(said, c)
	}
	rank := map[string]int{appraise.StatusContraindicated: 0, appraise.StatusWarning: 1, appraise.StatusAffirming: 2}
	sort.Slice(said, func(i, j int) bool {
		if a, b := rank[said[i].Meaning], rank[said[j].Meaning]; a != b {
			return a < b
		}
		return said[i].Name < said[j].Name
	})
	return said, silent
}
