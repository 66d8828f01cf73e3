package cocoas

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/verifier"
)

const (
	maxSubmods = 256
	maxVector  = 16
	primary    = "cpu0"
)

var (
	submodName = regexp.MustCompile(`\A[a-z][a-z-]{0,31}[0-9]{1,3}\z`)
	claimName  = regexp.MustCompile(`\A[a-z][a-z-]{0,31}\z`)
)

// submod is one appraisal of a token.
type submod struct {
	name, tee, status, policy string
	vector                    map[string]int
	annotated                 map[string]any
}

// class is the name without its number: that of a policy is made of it.
func (s *submod) class() string { return strings.TrimRight(s.name, "0123456789") }

// record checks that a token is about the items that were sent, and tells what it says.
func (c *Client) record(id string, claims map[string]any, items []attestation.Item) (*decision.Record, error) {
	mods, err := submods(claims)
	if err != nil {
		return nil, err
	}
	if err := bound(mods, items); err != nil {
		return nil, err
	}
	tokenID, _ := claims["jti"].(string)
	rec := &decision.Record{
		ID: id, Time: c.now().UTC(), Kind: decision.KindAttestation, Decision: audit.Allow, TEE: verifier.Canonical(items[0].TEE),
	}
	for _, m := range mods {
		kept, err := attestation.KeptEvidence(m.annotated)
		if err != nil {
			return nil, err
		}
		policy := m.policy + "_" + m.class()
		rec.Parts = append(rec.Parts, decision.Part{
			Name: m.name, TEE: m.tee, Status: m.status, Policy: policy, Vector: m.vector, Evidence: kept,
			Findings: m.findings(policy, c.pool.Address(), tokenID),
		})
	}
	return rec, nil
}

// findings tells which claims of the vector are not affirming. The rules behind them are known to the service only: the expression
// says under which request, for administrators. Guests are told claim and values, and neither the service's address nor its request.
func (m *submod) findings(policy, address, tokenID string) []rego.Finding {
	if m.status == appraise.StatusAffirming {
		return nil
	}
	where := "appraised by " + address
	if tokenID != "" && claimText(tokenID) { // first, as what is shown of a finding is cut at its end
		where = "appraised as request " + tokenID + " by " + address
	}
	var out []rego.Finding
	for name, v := range m.vector {
		if v >= -32 && v <= 31 {
			continue
		}
		out = append(out, rego.Finding{
			Policy: policy, Rule: strings.ReplaceAll(name, "-", "_"), Expression: where, Claim: m.name + " " + name,
			Got: fmt.Append(nil, v), Expected: json.RawMessage(`"-32 to 31"`),
		})
	}
	slices.SortFunc(out, func(a, b rego.Finding) int { return cmp.Compare(a.Rule, b.Rule) })
	return out
}

func claimText(s string) bool {
	return len(s) <= 64 && strings.Trim(s, "0123456789abcdefABCDEF-") == ""
}

// submods reads the appraisals of a token, that of the machine first.
func submods(claims map[string]any) ([]*submod, error) {
	all, ok := claims["submods"].(map[string]any)
	if !ok || len(all) == 0 || len(all) > maxSubmods {
		return nil, fmt.Errorf("submods is %T with %d members, want an object with 1 to %d", claims["submods"], len(all), maxSubmods)
	}
	var out []*submod
	for name, v := range all {
		m, err := readSubmod(name, v)
		if err != nil {
			return nil, fmt.Errorf("submods.%.64q: %w", name, err)
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *submod) int {
		if d := cmp.Compare(b2i(a.name != primary), b2i(b.name != primary)); d != 0 {
			return d
		}
		return cmp.Or(cmp.Compare(a.class(), b.class()), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return out, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func readSubmod(name string, v any) (*submod, error) {
	o, ok := v.(map[string]any)
	if !ok || !submodName.MatchString(name) {
		return nil, fmt.Errorf("it is %T, want an object with a name like cpu0", v)
	}
	m := &submod{name: name, vector: map[string]int{}}
	m.status, _ = o["ear.status"].(string)
	switch m.status {
	case appraise.StatusNone, appraise.StatusAffirming, appraise.StatusWarning, appraise.StatusContraindicated:
	default:
		return nil, fmt.Errorf("ear.status is %.32q, want none, affirming, warning or contraindicated", m.status)
	}
	m.policy, _ = o["ear.appraisal-policy-id"].(string)
	if len(m.policy) > 256 {
		return nil, fmt.Errorf("ear.appraisal-policy-id has %d bytes, at most 256 are read", len(m.policy))
	}
	vector, _ := o["ear.trustworthiness-vector"].(map[string]any)
	if len(vector) > maxVector {
		return nil, fmt.Errorf("ear.trustworthiness-vector has %d members, at most %d are read", len(vector), maxVector)
	}
	for claim, value := range vector {
		number, ok := value.(json.Number)
		if !ok || !claimName.MatchString(claim) {
			return nil, fmt.Errorf("ear.trustworthiness-vector.%.64q is %T, want a number", claim, value)
		}
		n, err := number.Int64()
		if err != nil || n < -128 || n > 127 {
			return nil, fmt.Errorf("ear.trustworthiness-vector.%s is %.32q, want -128 to 127", claim, number)
		}
		m.vector[claim] = int(n)
	}
	if m.annotated, ok = o["ear.veraison.annotated-evidence"].(map[string]any); !ok {
		return nil, errors.New("it has no ear.veraison.annotated-evidence")
	}
	for member := range m.annotated {
		switch member {
		case claimInit, claimInitClaims, claimReport, claimRuntime:
			continue
		}
		if m.tee != "" {
			return nil, fmt.Errorf("its evidence is of %.32q and %.32q, want one", m.tee, member)
		}
		m.tee = verifier.Canonical(member)
	}
	return m, nil
}
