// Package verifier lists the kinds of evidence the broker can verify.
//
// Builtin is the whole list. Each entry is one package that checks signatures and bindings and returns claims; what to
// think of the claims is the business of broker/appraise. A verifier that is not configured stays in the list, disabled, with
// its reason, and shows up in the status.
package verifier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/cloister/cloister/wire/kbs"
)

// ClassCPU is the class of evidence about a whole guest; a token calls its parts by class and number.
const ClassCPU = "cpu"

// Request is what a verifier checks.
type Request struct {
	Evidence json.RawMessage
	// ReportData is the digest the evidence must be bound to.
	ReportData []byte
	// InitData is the digest of the init data, nil when the guest sent none.
	InitData []byte
	// Challenge is what the verifier's Challenge left in the session, or nil.
	Challenge json.RawMessage
}

// Result is the claims of one device.
type Result struct {
	Class  string
	Claims map[string]any
}

// Verifier checks evidence of one TEE.
type Verifier interface {
	Verify(ctx context.Context, r Request) ([]Result, error)
}

// Challenger is a Verifier that has something to say at the challenge already.
type Challenger interface {
	// Challenge reads the extra-params of a request. It never returns nil without an error.
	Challenge(ctx context.Context, params json.RawMessage) (*Challenge, error)
}

// Challenge is what a verifier wants at the challenge. The zero value wants nothing.
type Challenge struct {
	// Nonce replaces the random nonce of the session.
	Nonce string
	// Params become the extra-params; nil means none.
	Params *kbs.ChallengeParams
	// Hash is the algorithm of the report data; "" means the protocol's default.
	Hash string
	// Remember comes back in Request.Challenge.
	Remember json.RawMessage
}

// Entry is one kind of evidence.
type Entry struct {
	TEE string
	New func() (Verifier, error)
}

// Status is the state of one verifier.
type Status struct {
	TEE      string `json:"tee"`
	Ready    bool   `json:"ready"`
	Disabled string `json:"disabled,omitempty"`
}

// Set is the verifiers of a broker.
type Set struct {
	ready  map[string]Verifier
	status []Status
}

// ErrOff is wrapped by the error of a verifier that the configuration does not ask for.
var ErrOff = errors.New("not configured")

// NewSet starts every verifier of a list. One that is off stays in the list with the reason; one that was asked for and cannot
// start is an error, so that nobody finds out by its refusals.
func NewSet(entries []Entry) (*Set, error) {
	s := &Set{ready: map[string]Verifier{}}
	var errs []error
	for _, e := range entries {
		v, err := e.New()
		switch {
		case errors.Is(err, ErrOff):
			s.status = append(s.status, Status{TEE: e.TEE, Disabled: err.Error()})
		case err != nil:
			errs = append(errs, fmt.Errorf("starting the verifier of %s: %w", e.TEE, err))
		default:
			s.ready[e.TEE] = v
			s.status = append(s.status, Status{TEE: e.TEE, Ready: true})
		}
	}
	return s, errors.Join(errs...)
}

// Canonical is the one name of a TEE that has several spellings in use.
func Canonical(tee string) string {
	switch tee {
	case "azsnpvtpm":
		return "az-snp-vtpm"
	case "aztdxvtpm":
		return "az-tdx-vtpm"
	case "dpu", "nvidiadpu":
		return "nvidia-dpu"
	}
	return tee
}

// Get returns the verifier of a TEE, by its canonical name.
func (s *Set) Get(tee string) (Verifier, error) {
	if v, ok := s.ready[tee]; ok {
		return v, nil
	}
	for _, st := range s.status {
		if st.TEE == tee {
			return nil, fmt.Errorf("verifier of %q is disabled: %s", tee, st.Disabled)
		}
	}
	return nil, fmt.Errorf("tee %.32q has no verifier, known: %s", tee, strings.Join(s.known(), ", "))
}

// Status lists the verifiers.
func (s *Set) Status() []Status { return s.status }

func (s *Set) known() []string {
	var out []string
	for _, st := range s.status {
		out = append(out, st.TEE)
	}
	sort.Strings(out)
	return out
}
