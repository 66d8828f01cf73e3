package kubernetes

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of the input.
const (
	maxFileBytes = 16 << 20
	maxDocuments = 4096
	maxNodes     = 1 << 20 // visited, aliases counted each time
	maxDepth     = 100
)

// decoder fills structs from YAML nodes. The tag `k` names a member; a blank field lists what else a mapping may have:
// `accept:"a b"` are harmless members, `accept:"*"` makes all others harmless, `refuse:"a=reason|b=reason"` are known
// and not supported unless they say that they are not used.
type decoder struct {
	file     string
	object   string
	problems *Problems
	lenient  bool // unknown members are harmless
	pod      *podFields
	nodes    int
	stopped  bool // a limit was reached
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	if len(*d.problems) >= MaxProblems {
		return
	}
	*d.problems = append(*d.problems, problem(d.file, n.Line, d.object, path, format, args...))
}

// enter counts a node and follows aliases; nil means to stop.
func (d *decoder) enter(n *yaml.Node, path string, depth int) *yaml.Node {
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n.Alias == nil || hops > maxDepth {
			d.fail(n, path, "unknown alias")
			return nil
		}
		n = n.Alias
	}
	d.nodes++
	if (d.nodes > maxNodes || depth > maxDepth) && !d.stopped {
		d.fail(n, path, "the document is too large or too deeply nested")
		d.stopped = true
	}
	if d.stopped {
		return nil
	}
	return n
}

var nodeType = reflect.TypeFor[*yaml.Node]()

// At remembers where a value stands. Types that embed it get their node.
type At struct{ Node *yaml.Node }

// Line is the line of the value, 0 if it is not known.
func (a At) Line() int {
	if a.Node == nil {
		return 0
	}
	return a.Node.Line
}

var atType = reflect.TypeFor[At]()

// decode stores n into v. path names the place for messages.
func (d *decoder) decode(n *yaml.Node, path string, v reflect.Value, depth int) {
	if v.Type() == nodeType {
		v.Set(reflect.ValueOf(n))
		return
	}
	if n = d.enter(n, path, depth); n == nil || isNull(n) {
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
		out := reflect.MakeMap(v.Type())
		d.eachPair(n, path, depth, func(key string, _, vn *yaml.Node) {
			elem := reflect.New(v.Type().Elem()).Elem()
			d.decode(vn, join(path, key), elem, depth+1)
			out.SetMapIndex(reflect.ValueOf(key), elem)
		})
		v.Set(out)
	case reflect.String:
		if d.scalar(n, path, v.Type() == quantityType) {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		var x bool
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&x) != nil {
			d.fail(n, path, "expected true or false, got %s", kindName(n))
			return
		}
		v.SetBool(x)
	case reflect.Int64:
		x, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 0, 64)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			d.fail(n, path, "expected a whole number, got %s", kindName(n))
			return
		}
		v.SetInt(x)
	}
}

// scalar checks that n is text; loose accepts numbers, which quantities and ports may be.
func (d *decoder) scalar(n *yaml.Node, path string, loose bool) bool {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "expected text, got %s", kindName(n))
		return false
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return true
	case "!!int", "!!float":
		if loose {
			return true
		}
	}
	d.fail(n, path, "expected text, got %s, put it in quotes", kindName(n))
	return false
}

func (d *decoder) decodeStruct(n *yaml.Node, path string, v reflect.Value, depth int) {
	t := v.Type()
	rules := rulesOf(t)
	if f, ok := t.FieldByName("At"); ok && f.Type == atType {
		v.FieldByIndex(f.Index).Set(reflect.ValueOf(At{n}))
	}
	d.eachPair(n, path, depth, func(key string, kn, vn *yaml.Node) {
		sub := join(path, key)
		if d.pod.judged(d, kn, vn, sub) {
			return
		}
		if i, ok := rules.fields[key]; ok {
			d.decode(vn, sub, v.Field(i), depth+1)
			return
		}
		reason, refused := rules.refuse[key]
		switch {
		case refused && !isUnset(vn):
			d.fail(kn, sub, "not supported: %s", reason)
		case refused, rules.accept[key], rules.accept["*"], d.lenient:
		default:
			d.fail(kn, sub, "%w", ErrUnknownField)
		}
	})
}

// podFields is what the reader's caller says about the fields of one pod.
type podFields struct {
	judge    func(path string) (refused, ignored string)
	prefix   string // of the pod in its document
	warnings *[]string
}

// judged says whether the caller disposes of a field.
func (p *podFields) judged(d *decoder, kn, vn *yaml.Node, path string) bool {
	if p == nil || p.judge == nil {
		return false
	}
	path = strings.TrimPrefix(path, p.prefix)
	refused, ignored := p.judge(listIndex.ReplaceAllString(path, "[]"))
	switch {
	case refused == "" && ignored == "":
		return false
	case isUnset(vn):
	case refused != "":
		d.fail(kn, p.prefix+path, "not supported: %s", refused)
	default:
		*p.warnings = append(*p.warnings, fmt.Sprintf("%s is ignored: %s", path, ignored))
	}
	return true
}

var listIndex = regexp.MustCompile(`\[[0-9]+\]`)

type rules struct {
	fields map[string]int
	accept map[string]bool
	refuse map[string]string
}

func rulesOf(t reflect.Type) rules {
	r := rules{map[string]int{}, map[string]bool{}, map[string]string{}}
	for i := range t.NumField() {
		f := t.Field(i)
		if k := f.Tag.Get("k"); k != "" {
			r.fields[k] = i
		}
		for _, key := range strings.Fields(f.Tag.Get("accept")) {
			r.accept[key] = true
		}
		if text := f.Tag.Get("refuse"); text != "" {
			for item := range strings.SplitSeq(text, "|") {
				key, reason, _ := strings.Cut(item, "=")
				r.refuse[key] = reason
			}
		}
	}
	return r
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

// eachPair visits the members of a mapping, those of merge keys last, and refuses doubled keys.
func (d *decoder) eachPair(n *yaml.Node, path string, depth int, visit func(key string, kn, vn *yaml.Node)) {
	d.pairs(n, path, depth, map[string]bool{}, visit)
}

func (d *decoder) pairs(n *yaml.Node, path string, depth int, done map[string]bool, visit func(key string, kn, vn *yaml.Node)) {
	if n = d.enter(n, path, depth); n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "expected a mapping, got %s", kindName(n))
		return
	}
	var merges []*yaml.Node
	own := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, vn := n.Content[i], n.Content[i+1]
		switch {
		case kn.Kind == yaml.ScalarNode && kn.ShortTag() == "!!merge":
			merges = append(merges, vn)
		case kn.Kind != yaml.ScalarNode:
			d.fail(kn, path, "keys must be plain text")
		case own[kn.Value]:
			d.fail(kn, join(path, kn.Value), "given twice")
		case !done[kn.Value]:
			own[kn.Value], done[kn.Value] = true, true
			visit(kn.Value, kn, vn)
		}
	}
	for _, m := range merges {
		from := []*yaml.Node{m}
		if m.Kind == yaml.SequenceNode {
			from = m.Content
		}
		for _, one := range from {
			d.pairs(one, path, depth+1, done, visit)
		}
	}
}

// isUnset: values by which a manifest says that a feature is not used.
func isUnset(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return isNull(n) || n.Value == "" || n.ShortTag() == "!!bool" && strings.EqualFold(n.Value, "false")
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
		switch n.ShortTag() {
		case "!!int", "!!float":
			return "a number"
		case "!!bool":
			return "true or false"
		case "!!str":
			return "text"
		}
		return "a value of type " + n.ShortTag()
	}
	return "something else"
}

func join(path, key string) string {
	if strings.ContainsAny(key, ".[] /") || key == "" {
		return fmt.Sprintf("%s[%q]", path, key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
