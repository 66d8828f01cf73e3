package manifest

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of a manifest.
const (
	maxFileBytes = 8 << 20
	maxDocuments = 256
	maxNodes     = 500_000 // visited, aliases counted each time
	maxDepth     = 64
)

// quantity is a Kubernetes quantity as written; numbers are accepted as well.
type quantity string

var (
	quantityType = reflect.TypeFor[quantity]()
)

// positions remembers the line of each decoded field by its path.
type positions map[string]int

// decoder fills structs from YAML nodes and reports every field that it does not
// know, cannot honour or finds of the wrong type.
type decoder struct {
	file     string
	problems *problems
	warn     func(string)
	lines    positions
	nodes    int
	stopped  bool // a limit was reached
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.problems.add(d.file, n.Line, path, format, args...)
}

// decode stores n into v. path names the place for messages.
func (d *decoder) decode(n *yaml.Node, path string, v reflect.Value, depth int) {
	d.nodes++
	if d.nodes > maxNodes || depth > maxDepth {
		if !d.stopped {
			d.fail(n, path, "the document is too large or too deeply nested")
		}
		d.stopped = true
	}
	if d.stopped {
		return
	}
	if n.Kind == yaml.AliasNode {
		if n.Alias == nil {
			d.fail(n, path, "unknown alias")
			return
		}
		d.decode(n.Alias, path, v, depth+1)
		return
	}
	d.lines[path] = n.Line
	if isNull(n) {
		return
	}
	if v.Type() == quantityType {
		d.scalar(n, path, "!!str", "!!int", "!!float")
		v.SetString(n.Value)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, path, v.Elem(), depth)
	case reflect.Struct:
		d.decodeStruct(n, path, v, depth)
	case reflect.Slice:
		d.decodeSlice(n, path, v, depth)
	case reflect.Map:
		d.decodeMap(n, path, v, depth)
	case reflect.String:
		if d.scalar(n, path, "!!str") {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		if d.scalar(n, path, "!!bool") {
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	case reflect.Int64:
		if d.scalar(n, path, "!!int") {
			i, err := strconv.ParseInt(n.Value, 0, 64)
			if err != nil {
				d.fail(n, path, "%q is not a whole number", n.Value)
				return
			}
			v.SetInt(i)
		}
	case reflect.Interface:
		v.Set(reflect.ValueOf(true)) // present; the value does not matter
	}
}

// scalar checks that n is a scalar of one of the given YAML types.
func (d *decoder) scalar(n *yaml.Node, path string, tags ...string) bool {
	names := map[string]string{"!!str": "text", "!!int": "a whole number", "!!float": "a number", "!!bool": "true or false"}
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "expected %s, got %s", names[tags[0]], kindName(n))
		return false
	}
	got := n.ShortTag()
	for _, tag := range tags {
		if got == tag {
			return true
		}
	}
	hint := ""
	if tags[0] == "!!str" {
		hint = ", put it in quotes"
	}
	gotName := names[got]
	if gotName == "" {
		gotName = "a value of type " + got
	}
	d.fail(n, path, "expected %s, got %s%s", names[tags[0]], gotName, hint)
	return false
}

func (d *decoder) decodeStruct(n *yaml.Node, path string, v reflect.Value, depth int) {
	d.eachPair(n, path, func(key string, kn, vn *yaml.Node) {
		sub := join(path, key)
		field, ok := fieldOf(v.Type(), key)
		if !ok {
			d.fail(kn, sub, "unknown field")
			return
		}
		d.lines[sub] = kn.Line
		if text, ok := field.Tag.Lookup("unsupported"); ok {
			if !isUnset(vn) {
				d.fail(kn, sub, "not supported: %s", text)
			}
			return
		}
		if text, ok := field.Tag.Lookup("ignored"); ok {
			if !isUnset(vn) {
				d.warn(fmt.Sprintf("%s is ignored: %s", sub, text))
			}
			return
		}
		if field.Tag.Get("quiet") == "true" {
			return
		}
		d.decode(vn, sub, v.FieldByIndex(field.Index), depth+1)
	})
}

func (d *decoder) decodeSlice(n *yaml.Node, path string, v reflect.Value, depth int) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "expected a list, got %s", kindName(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		sub := fmt.Sprintf("%s[%d]", path, i)
		if isNull(item) {
			d.fail(item, sub, "empty entry")
			continue
		}
		d.decode(item, sub, out.Index(i), depth+1)
	}
	v.Set(out)
}

func (d *decoder) decodeMap(n *yaml.Node, path string, v reflect.Value, depth int) {
	out := reflect.MakeMap(v.Type())
	d.eachPair(n, path, func(key string, _, vn *yaml.Node) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.decode(vn, join(path, key), elem, depth+1)
		out.SetMapIndex(reflect.ValueOf(key), elem)
	})
	v.Set(out)
}

// eachPair visits the members of a mapping and refuses doubled keys.
func (d *decoder) eachPair(n *yaml.Node, path string, visit func(key string, kn, vn *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "expected a mapping, got %s", kindName(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, vn := n.Content[i], n.Content[i+1]
		switch {
		case kn.Kind != yaml.ScalarNode || kn.ShortTag() == "!!merge":
			d.fail(kn, path, "keys must be plain text (merge keys are not supported)")
		case seen[kn.Value]:
			d.fail(kn, join(path, kn.Value), "given twice")
		default:
			seen[kn.Value] = true
			visit(kn.Value, kn, vn)
		}
	}
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); key != "" && f.Tag.Get("k") == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// isUnset: values by which a manifest says that a feature is not used.
func isUnset(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return isNull(n) || n.Value == "" || (n.ShortTag() == "!!bool" && strings.EqualFold(n.Value, "false"))
	case yaml.SequenceNode, yaml.MappingNode:
		return len(n.Content) == 0
	}
	return false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		return "a single value"
	}
	return "something else"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	if strings.ContainsAny(key, ".[] ") {
		return fmt.Sprintf("%s[%q]", path, key)
	}
	return path + "." + key
}
