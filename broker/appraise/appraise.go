// Package appraise turns the claims of verified evidence into trust claims, by policy.
//
// A verifier says what is true of a guest; this package says what to think of it. The policy is Rego (see
// attestation-service.md section 7), the result is one appraisal per device in the EAR vocabulary, and whatever is not
// affirming comes with the findings that explain it.
package appraise

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
)

// DefaultPolicy is the policy id every attestation uses; the class of the device is appended.
const DefaultPolicy = "default"

// The statuses of an appraisal, from best to worst.
const (
	StatusNone            = "none"
	StatusAffirming       = "affirming"
	StatusWarning         = "warning"
	StatusContraindicated = "contraindicated"
)

//go:embed default_*.rego
var defaults embed.FS

// classes are those of devices that there is a default policy for.
var classes = []string{"cpu", "gpu", "switch", "ppcie", "dcu", "nvidia-dpu"}

// Classes are those of devices that a new store has a policy for.
func Classes() []string { return slices.Clone(classes) }

// Default is the text of the policy for a class that a new store starts with; a class that has none is an error.
func Default(class string) (string, error) {
	text, err := defaults.ReadFile("default_" + class + ".rego")
	if err != nil {
		return "", fmt.Errorf("there is no default policy for devices of class %.32q", class)
	}
	return string(text), nil
}

// trustClaims are the names of the AR4SI trustworthiness vector.
var trustClaims = []string{
	"instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque",
	"sourced-data",
}

// Evidence is what a verifier found out about one device, with what the guest said about itself.
type Evidence struct {
	TEE    string
	Class  string
	Claims map[string]any
	// InitData are the claims of the init data, nil when none was sent.
	InitData any
	// Runtime are the claims of the runtime data.
	Runtime any
}

// Appraisal is the result for one device.
type Appraisal struct {
	Name   string
	Status string
	Vector map[string]int
	// Chosen is the policy id that was asked for, PolicyID that of the policy for the device's class.
	Chosen   string
	PolicyID string
	// Annotated is the evidence as the policy saw it.
	Annotated map[string]any
	// Extensions are further members of the submodule, made by the policy.
	Extensions map[string]any
	// Findings tell why the status is not affirming.
	Findings []rego.Finding
	// Checks tell of all rules behind the vector what they saw; only a Trial asks for them.
	Checks []rego.Check
	// Opaque are the trust claims that no rule of their name stands behind, so that Checks say nothing of them.
	Opaque []string
}

// Submod is the appraisal as it stands in a token.
func (a *Appraisal) Submod() map[string]any {
	out := map[string]any{}
	for name, v := range a.Extensions {
		out[name] = v
	}
	out["ear.status"] = a.Status
	out["ear.trustworthiness-vector"] = a.Vector
	out["ear.appraisal-policy-id"] = a.Chosen
	out["ear.veraison.annotated-evidence"] = a.Annotated
	return out
}

type referenceValues interface {
	Lookup(ctx context.Context, name string) (json.RawMessage, error)
}

type policies interface {
	Get(ctx context.Context, id string) (*rego.Policy, error)
	PutDefault(ctx context.Context, id, text string) error
}

// Appraiser appraises evidence.
type Appraiser struct {
	policies policies
	refs     referenceValues
	settings map[string]any
}

// New makes an Appraiser and installs the default policies where none are. The settings are what policies see as
// data.cloister: switches of the broker's configuration, such as insecure_unknown_tpm.
func New(ctx context.Context, p policies, refs referenceValues, settings map[string]any) (*Appraiser, error) {
	for _, class := range classes {
		text, err := Default(class)
		if err != nil {
			return nil, err
		}
		if err := p.PutDefault(ctx, DefaultPolicy+"_"+class, text); err != nil {
			return nil, err
		}
	}
	return &Appraiser{policies: p, refs: refs, settings: settings}, nil
}

// Namespace is where attestation policies are stored.
const Namespace = store.Policies

// Appraise appraises every piece of evidence of a guest by the policies <policy>_<class>.
func (a *Appraiser) Appraise(ctx context.Context, policy string, evidence []Evidence) ([]Appraisal, error) {
	perClass := map[string]int{}
	out := make([]Appraisal, 0, len(evidence))
	for _, e := range evidence {
		name := fmt.Sprintf("%s%d", e.Class, perClass[e.Class])
		perClass[e.Class]++
		one, err := a.one(ctx, policy, name, e)
		if err != nil {
			return nil, fmt.Errorf("appraising %s (%s): %w", name, e.TEE, err)
		}
		out = append(out, *one)
	}
	return out, nil
}

func (a *Appraiser) one(ctx context.Context, id, name string, e Evidence) (*Appraisal, error) {
	policy, err := a.policies.Get(ctx, id+"_"+e.Class)
	if err != nil {
		return nil, err
	}
	result, _, err := byPolicy(ctx, policy, id, name, e, a.refs, a.settings)
	return result, err
}

// byPolicy appraises one device. The evaluation can be asked for more.
func byPolicy(
	ctx context.Context, policy *rego.Policy, chosen, name string, e Evidence, refs referenceValues, settings map[string]any,
) (*Appraisal, *rego.Evaluation, error) {
	annotated := annotate(e)
	evaluation, err := policy.Begin(rego.Document{
		Input: annotated, Data: map[string]any{"cloister": settings}, Lookup: refs.Lookup,
	})
	if err != nil {
		return nil, nil, err
	}
	result := &Appraisal{Name: name, Chosen: chosen, PolicyID: policy.ID(), Annotated: annotated}
	value, defined, err := evaluation.Eval(ctx, "trust_claims")
	if err != nil {
		return nil, nil, err
	}
	if result.Vector, err = vector(value, defined); err != nil {
		return nil, nil, fmt.Errorf("policy %s: %w", policy.ID(), err)
	}
	value, defined, err = evaluation.Eval(ctx, "extensions")
	if err != nil {
		return nil, nil, err
	}
	if result.Extensions, err = extensions(value, defined); err != nil {
		return nil, nil, fmt.Errorf("policy %s: %w", policy.ID(), err)
	}
	result.Status = status(result.Vector)
	if result.Status != StatusAffirming {
		if result.Findings, err = evaluation.Explain(ctx, weak(result.Vector)...); err != nil {
			return nil, nil, err
		}
	}
	return result, evaluation, nil
}

// annotate builds the policy input out of claims (attestation-service.md section 8.1).
func annotate(e Evidence) map[string]any {
	rest := make(map[string]any, len(e.Claims))
	for k, v := range e.Claims {
		rest[k] = v
	}
	out := map[string]any{}
	if v, ok := rest["init_data"].(string); ok {
		out["init_data"], out["init_data_claims"] = v, e.InitData
		delete(rest, "init_data")
	}
	if v, ok := rest["report_data"]; ok {
		out["report_data"], out["runtime_data_claims"] = v, e.Runtime
		delete(rest, "report_data")
	}
	out[e.TEE] = rest
	return out
}

func vector(value any, defined bool) (map[string]int, error) {
	out := map[string]int{}
	if !defined {
		for _, name := range trustClaims {
			out[name] = 0
		}
		return out, nil
	}
	claims, ok := value.(map[string]any)
	if !ok || len(claims) == 0 {
		return nil, fmt.Errorf("trust_claims is %T, want an object with at least one claim", value)
	}
	known := map[string]bool{}
	for _, name := range trustClaims {
		known[name] = true
	}
	for name, v := range claims {
		if !known[name] {
			return nil, fmt.Errorf("trust_claims has %q, known: %s", name, strings.Join(trustClaims, ", "))
		}
		number, ok := v.(json.Number)
		if !ok {
			return nil, fmt.Errorf("trust claim %s is %T, want a number", name, v)
		}
		n, err := number.Int64()
		if err != nil || n < math.MinInt8 || n > math.MaxInt8 {
			return nil, fmt.Errorf("trust claim %s is %s, want a whole number from -128 to 127", name, number)
		}
		out[name] = int(n)
	}
	return out, nil
}

func extensions(value any, defined bool) (map[string]any, error) {
	if !defined {
		return nil, nil
	}
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("extensions is %T, want an array", value)
	}
	out := map[string]any{}
	for _, item := range list {
		member, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("an extension is %T, want an object", item)
		}
		name, ok := member["name"].(string)
		if !ok || name == "" {
			return nil, fmt.Errorf("an extension has no name")
		}
		out[name] = member["value"]
	}
	return out, nil
}

// tier orders trust claim values: 0 none, 1 affirming, 2 warning, 3 contraindicated.
func tier(v int) int {
	switch {
	case v >= -1 && v <= 1:
		return 0
	case v >= -32 && v <= 31:
		return 1
	case v >= -96 && v <= 95:
		return 2
	default:
		return 3
	}
}

func status(vector map[string]int) string {
	worst := 0
	for _, v := range vector {
		worst = max(worst, tier(v))
	}
	return [...]string{StatusNone, StatusAffirming, StatusWarning, StatusContraindicated}[worst]
}

// weak names the rules behind the claims that are not affirming, by the habit that a rule is named like its claim.
func weak(vector map[string]int) []string {
	var names []string
	for name, v := range vector {
		if tier(v) > 1 {
			names = append(names, ruleOf(name))
		}
	}
	sort.Strings(names)
	return names
}
