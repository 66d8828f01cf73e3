package kubernetes

import (
	"errors"
	"fmt"
	"reflect"

	"go.yaml.in/yaml/v3"
)

// meaning is one change: the text that stands at steps of a document.
type meaning struct {
	doc   int
	steps []any // keys and indices
	value string
}

// scalar is a value as the API server sees it.
type scalar struct{ tag, value string }

// check reads the changed text and compares it with what was meant: nothing else may have changed.
func (f *File) check(changed []byte) error {
	var problems Problems
	docs := documents(Input{Name: f.Name, Data: changed}, &problems)
	if err := problems.Err(); err != nil {
		return err
	}
	if len(docs) != len(f.docs) {
		return fmt.Errorf("it would have %d documents instead of %d", len(docs), len(f.docs))
	}
	for i := range docs {
		count := 0
		want, err := expand(f.docs[i], &count, 0)
		if err != nil {
			return err
		}
		count = 0
		got, err := expand(docs[i], &count, 0)
		if err != nil {
			return err
		}
		for _, m := range f.meant {
			if m.doc == i && !m.apply(want) {
				return fmt.Errorf("line %d: the place to change was not found", f.docs[i].Line)
			}
		}
		if !reflect.DeepEqual(want, got) {
			return fmt.Errorf("the change would not only concern its place in the object at line %d; are parts of it used twice by an alias?", f.docs[i].Line)
		}
	}
	return nil
}

// apply makes the change in an expanded document. Mappings on the way are made.
func (m meaning) apply(at any) bool {
	for i, step := range m.steps {
		last := i == len(m.steps)-1
		switch x := at.(type) {
		case map[string]any:
			key, ok := step.(string)
			if !ok {
				return false
			}
			if last {
				x[key] = scalar{"!!str", m.value}
				return true
			}
			if old, ok := x[key].(scalar); x[key] == nil || ok && old.tag == "!!null" {
				x[key] = map[string]any{}
			}
			at = x[key]
		case []any:
			n, ok := step.(int)
			if !ok || n < 0 || n >= len(x) || last {
				return false
			}
			at = x[n]
		default:
			return false
		}
	}
	return false
}

// expand turns nodes into maps, slices and scalars, with aliases as copies.
func expand(n *yaml.Node, count *int, depth int) (any, error) {
	*count++
	if *count > maxNodes || depth > 2*maxDepth {
		return nil, errors.New("the document is too large or too deeply nested")
	}
	switch n.Kind {
	case yaml.AliasNode:
		if n.Alias == nil {
			return nil, errors.New("unknown alias")
		}
		return expand(n.Alias, count, depth+1)
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := expand(n.Content[i+1], count, depth+1)
			if err != nil {
				return nil, err
			}
			key := n.Content[i]
			out[key.Value] = v
			if key.Kind != yaml.ScalarNode {
				out[fmt.Sprintf("\x00%d", i)] = key.Kind
			}
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, c := range n.Content {
			v, err := expand(c, count, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	}
	return scalar{n.ShortTag(), n.Value}, nil
}
