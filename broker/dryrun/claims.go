package dryrun

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/broker/appraise"
)

// Device is the claims of one device, verified now or once.
type Device struct {
	appraise.Evidence
	// Lost are the claims that were not kept, as findings name them; shortened says that the TEE's own claims lost some.
	Lost      []string
	shortened bool
}

// What records keep in the place of what they leave out; see broker/attestation.
const (
	leftOut   = "left out: "
	shortened = "cloister.shortened"
)

// Claims are the devices of a record or a token.
func (s *Saved) Claims() ([]Device, error) {
	switch s.Form {
	case FormRecord:
		return s.ofRecord()
	case FormToken:
		return ofToken(s.Token)
	}
	return nil, fmt.Errorf("claims of saved %s are known only after it is verified", s.Form)
}

func (s *Saved) ofRecord() ([]Device, error) {
	r := s.Record
	if len(r.Parts) == 0 && r.Attestation != nil {
		r = r.Attestation
	}
	if len(r.Parts) == 0 {
		return nil, errors.New("the record has no appraisals: it is not that of an attestation")
	}
	var out []Device
	for _, p := range r.Parts {
		if len(p.Evidence) == 0 {
			return nil, fmt.Errorf("the record has no claims of %s", p.Name)
		}
		annotated, err := object(p.Evidence)
		if err != nil {
			return nil, fmt.Errorf("reading the claims of %s: %w", p.Name, err)
		}
		d, err := device(p.Name, annotated)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func ofToken(claims map[string]any) ([]Device, error) {
	submods, _ := claims["submods"].(map[string]any)
	if len(submods) == 0 {
		return nil, errors.New("the token has no submods: it is no attestation result")
	}
	names := slices.SortedFunc(maps.Keys(submods), func(a, b string) int {
		classA, numberA := split(a)
		classB, numberB := split(b)
		return cmp.Or(strings.Compare(classA, classB), numberA-numberB)
	})
	var out []Device
	for _, name := range names {
		part, _ := submods[name].(map[string]any)
		annotated, ok := part["ear.veraison.annotated-evidence"].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("the token has no claims of %s", name)
		}
		d, err := device(name, annotated)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// split cuts the name of a part into class and number.
func split(name string) (class string, number int) {
	class = strings.TrimRight(name, "0123456789")
	number, _ = strconv.Atoi(name[len(class):]) // no number sorts first
	return class, number
}

// device takes apart what appraise puts together for policies.
func device(name string, annotated map[string]any) (Device, error) {
	var d Device
	d.Class, _ = split(name)
	d.Claims = map[string]any{}
	for key, v := range annotated {
		text, isText := v.(string)
		if isText && strings.HasPrefix(text, leftOut) {
			d.Lost = append(d.Lost, key)
		}
		switch key {
		case "init_data", "report_data":
			d.Claims[key] = v
		case "init_data_claims":
			d.InitData = v
			d.Lost = append(d.Lost, lostIn(key, v)...)
		case "runtime_data_claims":
			d.Runtime = v
		default:
			if d.TEE != "" {
				return d, fmt.Errorf("%s has claims of %q and of %q, want one TEE", name, d.TEE, key)
			}
			d.TEE = key
			if claims, ok := v.(map[string]any); ok {
				for k, c := range claims {
					d.Claims[k] = c
				}
				d.shortened = claims[shortened] == true
				delete(d.Claims, shortened)
			}
		}
	}
	if d.TEE == "" {
		return d, fmt.Errorf("%s has no claims of a TEE", name)
	}
	if d.shortened {
		d.Lost = append(d.Lost, d.TEE+" (all but short texts)")
	}
	slices.Sort(d.Lost)
	return d, nil
}

// lostIn names the members of claims that were left out.
func lostIn(at string, v any) []string {
	claims, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	var lost []string
	for key, inner := range claims {
		if text, ok := inner.(string); ok && strings.HasPrefix(text, leftOut) {
			lost = append(lost, at+member(key))
		}
	}
	if claims[shortened] == true {
		lost = append(lost, at)
	}
	return lost
}

var plainMember = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]*\z`)

// member is the name of a member as Rego writes it after what it is a member of.
func member(name string) string {
	if plainMember.MatchString(name) {
		return "." + name
	}
	return "[" + strconv.Quote(name) + "]"
}

// lacks tells whether a claim that a policy looked at was left out; got says that it saw something there.
func (d *Device) lacks(claim string, got bool) bool {
	for _, lost := range d.Lost {
		if rest, ok := strings.CutPrefix(claim, lost); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	if !d.shortened || got {
		return false
	}
	rest, ok := strings.CutPrefix("."+claim, member(d.TEE))
	if !ok {
		rest, ok = strings.CutPrefix("input"+claim, "input"+member(d.TEE))
	}
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}
