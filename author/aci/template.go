package aci

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The resources that hold containers.
const (
	groupType   = "Microsoft.ContainerInstance/containerGroups"
	profileType = "Microsoft.ContainerInstance/containerGroupProfiles"
)

const (
	maxGroups     = 256
	maxContainers = 256 // of one group
)

// Template is an ARM template, and what has been read from it.
type Template struct {
	// Groups are the container groups in the order of the template. Groups that its conditions leave out are not among them.
	Groups []*Group
	// Warnings are facts that the user should know but that are no errors.
	Warnings []string

	text  string
	edits []edit
}

// TemplateOptions say how a template is read.
type TemplateOptions struct {
	// Parameters is the text of a parameters file: {"parameters": {"name": {"value": …}}}. Empty: the template's defaults.
	Parameters string
	// AllowOpen lets the value of a variable be anything where the template takes it from what only Azure knows: a parameter without
	// a value, an address of another resource. Without it this is an error, because the host can then choose that part.
	AllowOpen bool
	// PinSecure writes secureValue variables into the policy, which is no secret. Without it their values are open.
	PinSecure bool
}

// scope holds the names that expressions can use.
type scope struct {
	params  map[string]*parameter
	vars    map[string]*node
	values  map[string]any  // of variables, once evaluated
	running map[string]bool // names being evaluated, which must not be needed again
	steps   int
}

type parameter struct {
	declared *node
	given    *node // nil: not given
	vault    bool  // the value is in a key vault
}

// ParseTemplate reads a template. The error lists all faults.
func ParseTemplate(text string, o TemplateOptions) (*Template, error) {
	root, err := parseJSON(text)
	if err != nil {
		return nil, fmt.Errorf("reading the template: %w", err)
	}
	if root.kind != '{' {
		return nil, errors.New("reading the template: it is no object")
	}
	s := &scope{params: map[string]*parameter{}, vars: map[string]*node{}, values: map[string]any{}, running: map[string]bool{}}
	for _, m := range membersOf(root.get("parameters")) {
		s.params[strings.ToLower(m.name)] = &parameter{declared: m.value}
	}
	for _, m := range membersOf(root.get("variables")) {
		s.vars[strings.ToLower(m.name)] = m.value
	}
	if o.Parameters != "" {
		if err := s.give(o.Parameters); err != nil {
			return nil, err
		}
	}
	t := &Template{text: text}
	r := &reader{scope: s, template: t, options: o}
	r.resources(root.get("resources"))
	if len(r.faults) > 0 {
		return nil, fmt.Errorf("reading the template: %w", errors.Join(r.faults...))
	}
	if len(t.Groups) == 0 {
		return nil, fmt.Errorf("reading the template: it has no resource of type %s", groupType)
	}
	slices.Sort(t.Warnings)
	t.Warnings = slices.Compact(t.Warnings)
	return t, nil
}

func membersOf(n *node) []member {
	if n == nil {
		return nil
	}
	return n.members
}

// give takes the values of a parameters file.
func (s *scope) give(text string) error {
	root, err := parseJSON(text)
	if err != nil {
		return fmt.Errorf("reading the parameters: %w", err)
	}
	given := root.get("parameters")
	if given == nil {
		return errors.New("reading the parameters: the file has no member parameters")
	}
	for _, m := range given.members {
		p := s.params[strings.ToLower(m.name)]
		if p == nil {
			return fmt.Errorf("reading the parameters: the template has no parameter %q", m.name)
		}
		p.given = m.value.get("value")
		p.vault = m.value.get("reference") != nil
		if p.given == nil && !p.vault {
			return fmt.Errorf("reading the parameters: %q has neither value nor reference", m.name)
		}
	}
	return nil
}

func (s *scope) parameter(name string) (any, error) {
	p := s.params[strings.ToLower(name)]
	switch {
	case p == nil:
		return nil, fmt.Errorf("the template has no parameter %q", name)
	case p.given != nil:
		return p.given.literal() // values of a parameters file are no expressions
	case p.vault:
		return open{why: "the key vault's value of parameter " + name}, nil
	}
	d := p.declared.get("defaultValue")
	if d == nil {
		return open{"parameter " + name + ", which has no value", name}, nil
	}
	return s.named("parameter "+strings.ToLower(name), d)
}

func (s *scope) variable(name string) (any, error) {
	n := s.vars[strings.ToLower(name)]
	if n == nil {
		return nil, fmt.Errorf("the template has no variable %q", name)
	}
	return s.named("variable "+strings.ToLower(name), n)
}

func (s *scope) named(name string, n *node) (any, error) {
	if v, ok := s.values[name]; ok {
		return v, nil
	}
	if s.running[name] {
		return nil, fmt.Errorf("%s needs itself", name)
	}
	if len(s.running) > maxCallDepth {
		return nil, fmt.Errorf("%s is nested more than %d deep", name, maxCallDepth)
	}
	s.running[name] = true
	defer delete(s.running, name)
	v, err := s.value(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.values[name] = v
	return v, nil
}

// value evaluates a value of the template with the expressions in it.
func (s *scope) value(n *node) (any, error) {
	switch n.kind {
	case '"':
		if e, ok := isExpression(n.text); ok {
			return s.evaluate(e)
		}
		if strings.HasPrefix(n.text, "[[") {
			return n.text[1:], nil
		}
		return n.text, nil
	case '[':
		out := make([]any, 0, len(n.items))
		for _, item := range n.items {
			v, err := s.value(item)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case '{':
		out := map[string]any{}
		for _, m := range n.members {
			if strings.EqualFold(m.name, "copy") && m.value.kind == '[' {
				return nil, errors.New("copy loops are not supported")
			}
			v, err := s.value(m.value)
			if err != nil {
				return nil, err
			}
			out[m.name] = v
		}
		return out, nil
	}
	return n.literal()
}

// literal is the value of a node in which nothing is an expression.
func (n *node) literal() (any, error) {
	switch n.kind {
	case '"':
		return n.text, nil
	case 't':
		return true, nil
	case 'f':
		return false, nil
	case 'n':
		return nil, nil
	case '0':
		if i, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			return i, nil
		}
		return strconv.ParseFloat(n.text, 64)
	case '[':
		out := make([]any, 0, len(n.items))
		for _, item := range n.items {
			v, err := item.literal()
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
	out := map[string]any{}
	for _, m := range n.members {
		v, err := m.value.literal()
		if err != nil {
			return nil, err
		}
		out[m.name] = v
	}
	return out, nil
}
