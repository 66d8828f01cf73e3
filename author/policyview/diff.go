package policyview

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// Change is one difference between two policies. A side that lacks the value is nil.
type Change struct {
	Path string `json:"path"`
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
	// Order means that a list has the elements of before in another order.
	Order bool `json:"order,omitempty"`
}

// maxShown bounds a value on a line, in bytes.
const maxShown = 160

var environment = regexp.MustCompile(`(^|\.)(Env|env_rules)(\.|$)`)

// text shows the change on one line; values of environment variables are left out unless values is set.
func (c Change) text(values bool) string {
	show := func(v any) string {
		if s, ok := v.(string); ok && environment.MatchString(c.Path) && !values {
			if name, _, found := strings.Cut(s, "="); found {
				return safe(name) + "=(not shown)"
			}
		}
		if m, ok := v.(map[string]any); ok {
			if named := identity(m); named != "" {
				return fmt.Sprintf("%s (%d members)", named, len(m))
			}
			return fmt.Sprintf("(%d members)", len(m)) // a container, say, whose page tells more
		}
		raw, err := json.Marshal(v)
		if err != nil || environment.MatchString(c.Path) && !values {
			return "(not shown)"
		}
		if len(raw) > maxShown {
			return fmt.Sprintf("%s… (%d bytes)", safe(strings.ToValidUTF8(string(raw[:maxShown]), "")), len(raw))
		}
		return safe(string(raw))
	}
	switch {
	case c.Order:
		return fmt.Sprintf("~ %s: the same in another order", safe(c.Path))
	case c.Old == nil:
		return fmt.Sprintf("+ %s: %s", safe(c.Path), show(c.New))
	case c.New == nil:
		return fmt.Sprintf("- %s: %s", safe(c.Path), show(c.Old))
	}
	return fmt.Sprintf("~ %s: %s -> %s", safe(c.Path), show(c.Old), show(c.New))
}

// identity is what tells an object without a name of its own from its neighbours.
func identity(m map[string]any) string {
	for _, key := range []string{"mount_point", "source", "feed", "path", "id"} {
		if s, _ := m[key].(string); s != "" {
			if len(s) > maxShown {
				s = strings.ToValidUTF8(s[:maxShown], "") + "…"
			}
			return key + " " + safe(s)
		}
	}
	return ""
}

// Lines shows changes, one per line: + is new, - is gone, ~ has another value.
func Lines(changes []Change, values bool) []string {
	out := make([]string, len(changes))
	for i, c := range changes {
		out[i] = c.text(values)
	}
	return out
}

// Diff lists what differs between two policies. Containers are compared by name, mounts by destination; lists in which the
// order means nothing are compared as sets.
func Diff(before, after *Policy) []Change {
	var d differ
	if before.Rules != after.Rules {
		d.add("rules", "sha256:"+before.Rules, "sha256:"+after.Rules)
	}
	d.walk("", normal("", before.Data), normal("", after.Data))
	for _, x := range []struct {
		path     string
		old, new []string
	}{{"always", before.Always, after.Always}, {"never", before.Never, after.Never}} {
		d.walk(x.path, asSet(x.old), asSet(x.new))
	}
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) add(path string, before, after any) {
	d.changes = append(d.changes, Change{Path: path, Old: before, New: after})
}

func (d *differ) walk(path string, before, after any) {
	if reflect.DeepEqual(before, after) {
		return
	}
	if x, ok := before.([]any); ok {
		if y, ok := after.([]any); ok {
			d.lists(path, x, y)
			return
		}
	}
	x, object := before.(map[string]any)
	y, other := after.(map[string]any)
	if !object || !other {
		d.add(path, before, after)
		return
	}
	keys := append(sorted(x), sorted(y)...)
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		d.walk(strings.TrimPrefix(path+"."+k, "."), x[k], y[k])
	}
}

// lists compares lists in which elements have no names: by position where that tells less, else as what is new and what is gone.
func (d *differ) lists(path string, before, after []any) {
	gone, added := without(before, after), without(after, before)
	if len(gone) == 0 && len(added) == 0 {
		d.changes = append(d.changes, Change{Path: path, Old: before, New: after, Order: true})
		return
	}
	if len(before) == len(after) {
		var at []int
		for i := range before {
			if !reflect.DeepEqual(before[i], after[i]) {
				at = append(at, i)
			}
		}
		if len(at) == len(gone) {
			for _, i := range at {
				d.walk(fmt.Sprintf("%s.%d", path, i), before[i], after[i])
			}
			return
		}
	}
	for _, x := range gone {
		d.add(path, x, nil)
	}
	for _, x := range added {
		d.add(path, nil, x)
	}
}

// without is a list less the elements of another, each as often as it is there.
func without(list, other []any) []any {
	count := map[string]int{}
	for _, x := range other {
		count[text(x)]++
	}
	var out []any
	for _, x := range list {
		if t := text(x); count[t] > 0 {
			count[t]--
		} else {
			out = append(out, x)
		}
	}
	return out
}

func text(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(raw)
}

// normal turns lists into objects by what names their elements.
func normal(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = normal(k, x)
		}
		return out
	case []any:
		return normalList(key, v)
	}
	return v
}

func normalList(key string, v []any) any {
	name := func(x any) string {
		o, _ := x.(map[string]any)
		switch key {
		case "containers":
			var c containerData
			if raw, err := json.Marshal(x); err == nil && json.Unmarshal(raw, &c) == nil {
				return c.title()
			}
		case "Mounts":
			s, _ := o["destination"].(string)
			return s
		case "Env":
			n, _, _ := strings.Cut(fmt.Sprint(x), "=")
			return n
		case "mounts":
			s, _ := o["destination"].(string)
			return s
		case "env_rules":
			s, _ := o["pattern"].(string)
			n, _, _ := strings.Cut(s, "=")
			return n
		case "AdditionalGids", "MaskedPaths", "ReadonlyPaths", "Ambient", "Bounding", "Effective", "Inheritable", "Permitted", "signals", "required_env", "required_mounts":
			return fmt.Sprint(x)
		}
		return ""
	}
	out := map[string]any{}
	for _, x := range v {
		n := name(x)
		if n == "" || out[n] != nil {
			return v // by position
		}
		out[n] = normal("", x)
		if o, ok := x.(map[string]any); ok {
			out[n] = normal(key+"[]", o)
		}
	}
	if len(v) == 0 {
		switch key {
		case "containers", "Mounts", "Env":
			return out
		}
		return v
	}
	return out
}

func asSet(list []string) any {
	out := map[string]any{}
	for _, x := range list {
		out[x] = true
	}
	return out
}
