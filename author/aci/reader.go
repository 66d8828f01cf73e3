package aci

import (
	"fmt"
	"slices"
	"strings"
)

// reader walks a template and gathers faults.
type reader struct {
	scope    *scope
	template *Template
	options  TemplateOptions
	faults   []error
}

// maxFaults bounds what is reported of one template.
const maxFaults = 100

func (r *reader) fault(n *node, path, format string, args ...any) {
	if len(r.faults) >= maxFaults {
		return
	}
	where := ""
	if n != nil {
		where = fmt.Sprintf("line %d: ", lineOf(r.template.text, n.start))
	}
	r.faults = append(r.faults, fmt.Errorf("%s%s: %w", where, path, fmt.Errorf(format, args...)))
}

func (r *reader) resources(n *node) {
	if n == nil {
		return
	}
	list := n.items
	for _, m := range n.members { // languageVersion 2.0: an object of resources by symbolic names
		list = append(list, m.value)
	}
	for i, res := range list {
		path := fmt.Sprintf("resources[%d]", i)
		kind, err := r.scope.valueOf(res.get("type"))
		if err != nil {
			r.fault(res, path+".type", "%w", err)
			continue
		}
		name, _ := kind.(string)
		switch {
		case strings.EqualFold(name, groupType), strings.EqualFold(name, profileType):
			r.group(res, path)
		case strings.EqualFold(name, "Microsoft.Resources/deployments"):
			r.nested(res, path)
		}
	}
}

// nested refuses templates in templates that hold container groups: their names are resolved in another scope.
func (r *reader) nested(res *node, path string) {
	text := r.template.text[res.start:res.end]
	if lower := strings.ToLower(text); strings.Contains(lower, strings.ToLower(groupType)) || strings.Contains(lower, strings.ToLower(profileType)) {
		r.fault(res, path, "a container group in a nested deployment is not supported; give the inner template by itself")
	}
}

func (s *scope) valueOf(n *node) (any, error) {
	if n == nil {
		return nil, nil
	}
	return s.value(n)
}

// value evaluates a field and reports its faults.
func (r *reader) value(n *node, path string) (any, bool) {
	if n == nil {
		return nil, false
	}
	v, err := r.scope.value(n)
	if err != nil {
		r.fault(n, path, "%w", err)
		return nil, false
	}
	return v, v != nil
}

// list is the items of a list that may be written out, so that its items keep their places, or be an expression.
func (r *reader) list(n *node, path string) []*node {
	switch {
	case n == nil || n.kind == 'n':
		return nil
	case n.kind == '[':
		return n.items
	}
	v, ok := r.value(n, path)
	if !ok {
		return nil
	}
	items, ok := v.([]any)
	if !ok {
		r.fault(n, path, "%w", notA(v, "a list"))
		return nil
	}
	out := make([]*node, len(items))
	for i, item := range items {
		if o, yes := openPart(item); yes {
			r.fault(n, path, "%w", o.fault("a part of it depends on %s", o.why))
			return nil
		}
		out[i] = nodeOf(item, n.start)
	}
	return out
}

// nodeOf makes a node of a value, in which texts that look like expressions are none.
func nodeOf(v any, at int) *node {
	n := &node{start: at, end: at}
	switch v := v.(type) {
	case nil:
		n.kind, n.text = 'n', "null"
	case bool:
		n.kind, n.text = 'f', "false"
		if v {
			n.kind, n.text = 't', "true"
		}
	case string:
		if n.kind, n.text = '"', v; strings.HasPrefix(v, "[") {
			n.text = "[" + v
		}
	case []any:
		n.kind = '['
		for _, x := range v {
			n.items = append(n.items, nodeOf(x, at))
		}
	case map[string]any:
		n.kind = '{'
		for k, x := range v {
			n.members = append(n.members, member{name: k, start: at, value: nodeOf(x, at)})
		}
		slices.SortFunc(n.members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	default:
		n.kind, n.text = '0', jsonText(v)
	}
	return n
}

func notA(v any, want string) error {
	if o, yes := openPart(v); yes {
		return o.fault("the value depends on %s; give it in a parameters file", o.why)
	}
	return fmt.Errorf("it is a %s, want %s", typeName(v), want)
}

func (o open) fault(format string, args ...any) *OpenError {
	return &OpenError{Parameter: o.parameter, text: fmt.Sprintf(format, args...)}
}

// object evaluates a field that is an object as a whole into a node, if it is an expression.
func (r *reader) object(n *node, path string) *node {
	if n == nil || n.kind == '{' || n.kind == 'n' {
		return n
	}
	v, ok := r.value(n, path)
	if !ok {
		return nil
	}
	if _, ok := v.(map[string]any); !ok {
		r.fault(n, path, "%w", notA(v, "an object"))
		return nil
	}
	if o, yes := openPart(v); yes {
		r.fault(n, path, "%w", o.fault("a part of it depends on %s", o.why))
		return nil
	}
	return nodeOf(v, n.start)
}

func (r *reader) str(n *node, path string) string {
	s, _ := r.text(n, path)
	return s
}

// text is a string, empty if there is none. It says whether that is so, or what stands there cannot be read, which is a fault then.
func (r *reader) text(n *node, path string) (s string, read bool) {
	before := len(r.faults)
	if v, ok := r.value(n, path); ok {
		if s, ok = v.(string); !ok {
			r.fault(n, path, "%w", notA(v, "a string"))
		}
	}
	return s, len(r.faults) == before
}

// flag reads a boolean, which templates also write as text.
func (r *reader) flag(n *node, path string) (is, set bool) {
	v, ok := r.value(n, path)
	if !ok {
		return false, false
	}
	switch v := v.(type) {
	case bool:
		return v, true
	case string:
		switch strings.ToLower(v) {
		case "true":
			return true, true
		case "false":
			return false, true
		}
	}
	r.fault(n, path, "%w", notA(v, "a boolean"))
	return false, false
}

func (r *reader) number(n *node, path string) *int64 {
	v, ok := r.value(n, path)
	if !ok {
		return nil
	}
	if i, ok := v.(int64); ok && i >= 0 && i < 1<<32 {
		return &i
	}
	r.fault(n, path, "%w", notA(v, "a number of 0 to 4294967295"))
	return nil
}

func (r *reader) strings(n *node, path string) []string {
	var out []string
	for i, item := range r.list(n, path) {
		before := len(r.faults)
		v, _ := r.value(item, fmt.Sprintf("%s[%d]", path, i))
		s, ok := v.(string)
		if !ok && len(r.faults) == before {
			r.fault(item, fmt.Sprintf("%s[%d]", path, i), "%w", notA(v, "a string"))
		}
		out = append(out, s)
	}
	return out
}
