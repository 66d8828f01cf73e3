package judge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// findings collects what is found out about evidence. The gravest kind makes the verdict.
type findings struct {
	claims     map[string]any
	tcb        string
	advisories []string

	bad       []string // forged, damaged, revoked, or for something else
	badWord   Word
	open_     []string // keeps it from being judged
	openWord  Word
	policy    []string // signed truth that nobody should accept
	expired   []string
	remarks   []string // signed truth that some would not accept
	unchecked []string
}

// refuse says why evidence is not genuine.
func (f *findings) refuse(format string, args ...any) { f.refuseAs(Invalid, format, args...) }

func (f *findings) refuseAs(w Word, format string, args ...any) {
	f.bad = append(f.bad, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
	if f.badWord == "" || w == Invalid {
		f.badWord = w
	}
}

// open says what is missing for a verdict; the first word counts.
func (f *findings) open(w Word, format string, args ...any) {
	f.open_ = append(f.open_, fmt.Sprintf(format, args...))
	if f.openWord == "" {
		f.openWord = w
	}
}

func (f *findings) reject(format string, args ...any) {
	f.policy = append(f.policy, fmt.Sprintf(format, args...))
}
func (f *findings) outdated(format string, args ...any) {
	f.expired = append(f.expired, fmt.Sprintf(format, args...))
}
func (f *findings) remark(format string, args ...any) {
	f.remarks = append(f.remarks, fmt.Sprintf(format, args...))
}
func (f *findings) note(format string, args ...any) {
	f.unchecked = append(f.unchecked, fmt.Sprintf(format, args...))
}

func (f *findings) claim(name string, value any) {
	if f.claims == nil {
		f.claims = map[string]any{}
	}
	f.claims[name] = value
}

func (f *findings) addClaims(claims map[string]any) {
	if f.claims == nil {
		f.claims = map[string]any{}
	}
	maps.Copy(f.claims, claims)
}

func (f *findings) verdict() Verdict {
	v := Verdict{TCBStatus: f.tcb, Advisories: f.advisories, Claims: f.claims, Word: f.word()}
	if v.Advisories == nil {
		v.Advisories = []string{}
	}
	if v.Claims == nil {
		v.Claims = map[string]any{}
	}
	v.Outcome = v.Word.outcome()
	v.Reasons = slices.Concat(f.bad, f.policy, f.expired, f.open_, f.remarks, f.unchecked)
	if v.Reasons == nil {
		v.Reasons = []string{}
	}
	return v
}

func (f *findings) word() Word {
	switch {
	case len(f.bad) > 0:
		return f.badWord
	case len(f.open_) > 0:
		return f.openWord
	case len(f.policy) > 0:
		return PolicyReject
	case len(f.expired) > 0:
		return Expired
	case len(f.remarks) > 0:
		return PolicyDecides
	}
	return Valid
}
