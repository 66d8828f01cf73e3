package gate

import (
	"errors"
	"fmt"
	"strings"
)

// maxMessage bounds the text of a denial; containerd cuts longer ones.
const maxMessage = 2000

// errUndefined: the policy has no answer for a rule.
var errUndefined = errors.New("the policy defines no such rule or gives no answer")

// DeniedError is a refusal by the policy (ttrpc PERMISSION_DENIED).
type DeniedError struct {
	// Rule is the policy rule that refused.
	Rule string
	// Reasons are the failed checks, closest alternative first. They name fields
	// and values but never the value of an environment variable or an argument.
	Reasons []string
	// Prints is what the policy printed, shortened.
	Prints string
}

func (e *DeniedError) Error() string {
	var b strings.Builder
	b.WriteString(e.Rule + " is blocked by policy: ")
	b.WriteString(strings.Join(e.Reasons, "; "))
	if e.Prints != "" {
		if len(e.Reasons) > 0 {
			b.WriteString("; ")
		}
		b.WriteString("printed: " + e.Prints)
	}
	return shorten(b.String(), maxMessage)
}

// InternalError is a policy that gives no usable answer (ttrpc INTERNAL). The
// request is refused.
type InternalError struct {
	Rule string
	Err  error
}

func (e *InternalError) Error() string {
	return shorten(fmt.Sprintf("%s: internal error %v", e.Rule, e.Err), maxMessage)
}

func (e *InternalError) Unwrap() error { return e.Err }

// PolicyError is a policy text that cannot be used (ttrpc INVALID_ARGUMENT).
type PolicyError struct{ Err error }

func (e *PolicyError) Error() string {
	return shorten(fmt.Sprintf("loading policy: %v", e.Err), maxMessage)
}

func (e *PolicyError) Unwrap() error { return e.Err }

// shorten cuts s to at most n bytes at a rune boundary and marks the cut.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}
