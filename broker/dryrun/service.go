package dryrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
)

// Request says what to appraise, and by what.
type Request struct {
	// RecordID is the request that an attestation was made in; Evidence is something saved instead. A token is given as JSON:
	// {"token": "…"}.
	RecordID string          `json:"record_id,omitempty"`
	Evidence json.RawMessage `json:"evidence,omitempty"`
	// TEE made the evidence; a record and a token say that themselves.
	TEE string `json:"tee,omitempty"`
	// PolicyID is a policy of the broker: "default" for those of all classes, "default_gpu" for one class, while devices of
	// other classes keep the default.
	PolicyID string `json:"policy_id,omitempty"`
	// Policy is the text of a candidate. It is for the class that PolicyID ends with, or else for that of the first device.
	Policy string `json:"policy,omitempty"`
	// Values are used instead of the broker's.
	Values appraise.Values `json:"values,omitempty"`
}

// ErrRequest is wrapped by errors that are the caller's.
var ErrRequest = errors.New("the dry run cannot be made")

type policies interface {
	Get(ctx context.Context, id string) (*rego.Policy, error)
}

type references interface {
	Lookup(ctx context.Context, name string) (json.RawMessage, error)
}

type records interface {
	Get(ctx context.Context, id string) (*decision.Record, error)
}

// Service makes dry runs with what a broker has. It writes nothing.
type Service struct {
	Policies  policies
	Values    references
	Records   records
	Verifiers Verifiers
	// Settings are what the broker's policies see as data.cloister.
	Settings map[string]any
}

// Run makes one dry run. Errors wrap ErrRequest, rego.ErrPolicy, rego.ErrUnknown or store.ErrNotFound when the caller can do
// something about them.
func (s *Service) Run(ctx context.Context, r Request) (*Result, error) {
	saved, err := s.saved(ctx, r)
	if err != nil {
		return nil, err
	}
	var devices []Device
	switch saved.Form {
	case FormRecord, FormToken:
		devices, err = saved.Claims()
	default:
		devices, err = saved.Verify(ctx, s.Verifiers, Binding{TEE: r.TEE})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	t := appraise.Trial{Settings: s.Settings, Values: s.Values}
	if r.Values != nil {
		t.Values = r.Values
	}
	if t.Policy, err = s.policy(r, devices); err != nil {
		return nil, err
	}
	out, err := Appraise(ctx, t, devices)
	if err != nil {
		return nil, err
	}
	out.Notes = saved.Notes(devices)
	return out, nil
}

func (s *Service) saved(ctx context.Context, r Request) (*Saved, error) {
	if (r.RecordID == "") == (len(r.Evidence) == 0) {
		return nil, fmt.Errorf("%w: want record_id or evidence, one of them", ErrRequest)
	}
	if r.RecordID == "" {
		saved, err := Read(r.Evidence)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		return saved, nil
	}
	record, err := s.Records.Get(ctx, r.RecordID)
	if err != nil {
		return nil, err
	}
	return &Saved{Form: FormRecord, Record: record}, nil
}

// policy tells by which policy devices of a class are appraised.
func (s *Service) policy(r Request, devices []Device) (func(context.Context, string) (*rego.Policy, error), error) {
	base, class := appraise.DefaultPolicy, ""
	if r.PolicyID != "" {
		base = r.PolicyID
		for _, d := range devices {
			if id, ok := strings.CutSuffix(r.PolicyID, "_"+d.Class); ok && id != "" {
				base, class = id, d.Class
			}
		}
	}
	var candidate *rego.Policy
	if r.Policy != "" {
		if class == "" && len(devices) > 0 {
			class = devices[0].Class
		}
		var err error
		if candidate, err = rego.Compile("candidate", r.Policy); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, of string) (*rego.Policy, error) {
		switch {
		case candidate != nil && of == class:
			return candidate, nil
		case class != "" && of != class:
			return s.Policies.Get(ctx, appraise.DefaultPolicy+"_"+of)
		}
		return s.Policies.Get(ctx, base+"_"+of)
	}, nil
}
