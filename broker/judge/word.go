package judge

import (
	"slices"
	"strings"
)

// Word is a verdict in the words of a folder of cases.
type Word string

// Words that a judgement has. Those of the folders are these, "valid-malleable", and alternatives joined by "-or-".
const (
	Valid          Word = "valid"
	ValidSignature Word = "valid-signature"       // what signs is good, something that was not given is needed for more
	PolicyDecides  Word = "policy-decides"        // accepted here, and some would not
	PolicyReject   Word = "policy-reject"         // good signatures under what nobody should accept
	Expired        Word = "expired-collateral"    // good signatures, a certificate, list or document is not of now
	NotYet         Word = "not-yet-valid"         // a certificate is of a time to come
	Partial        Word = "partial"               // an event log that stops before the registers of its quote do
	ContentCheck   Word = "content-check"         // an event whose content is not what its digest is of
	ParseOnly      Word = "parse-only"            // nothing to judge it by was given
	NoChain        Word = "unsupported-cert-type" // a quote without its certificates
	Empty          Word = "empty"                 // an event log without events
	Incomplete     Word = "incomplete-collateral" // collateral was given and is not whole
	Invalid        Word = "invalid"
)

func (w Word) outcome() Outcome {
	switch w {
	case Valid, PolicyDecides:
		return Genuine
	case ValidSignature, ParseOnly, NoChain, Empty, Incomplete:
		return Unjudged
	}
	return Refused
}

// Meets tells whether a verdict is what a case expects.
//
// "valid" means that every check passes for which the case gives something, so that valid-signature meets it, and so does
// policy-decides, which is accepted. "policy-reject" and "policy-decides" are both met by what depends on a switch. Of
// alternatives ("invalid-or-empty") one has to be met; "reordered", "ignored" and "unsupported" are ways of taking evidence.
func (w Word) Meets(expected string) bool {
	alternatives := strings.Split(expected, "-or-")
	return slices.ContainsFunc(alternatives, w.meetsOne)
}

func (w Word) meetsOne(expected string) bool {
	accepts := map[string][]Word{
		"valid":                 {Valid, ValidSignature, PolicyDecides},
		"valid-malleable":       {Valid, ValidSignature, PolicyDecides},
		"valid-signature":       {ValidSignature, Valid, PolicyDecides, Incomplete},
		"incomplete-collateral": {Incomplete},
		"policy-reject":         {PolicyReject, PolicyDecides},
		"policy-decides":        {Valid, PolicyDecides, PolicyReject, Expired, NotYet},
		"expired-collateral":    {Expired, NotYet},
		"invalid":               {Invalid, NotYet},
		"partial":               {Partial},
		"parse-only":            {ParseOnly, ValidSignature},
		"unsupported-cert-type": {NoChain},
		"content-check":         {ContentCheck},
		"empty":                 {Empty, ParseOnly},
		"reordered":             {Valid, ValidSignature},
		"ignored":               {Valid, ValidSignature},
		"unsupported":           {NoChain, ParseOnly},
	}
	return slices.Contains(accepts[expected], w)
}

// known tells whether an expectation is made of words that mean something.
func known(expected string) bool {
	for _, e := range strings.Split(expected, "-or-") {
		met := false
		for _, w := range []Word{Valid, ValidSignature, PolicyReject, Expired, Partial, ContentCheck, ParseOnly, NoChain, Empty, Invalid,
			Incomplete} {
			met = met || w.meetsOne(e)
		}
		if !met {
			return false
		}
	}
	return true
}
