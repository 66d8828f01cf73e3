package genpolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// operation is one of RFC 6902.
type operation struct {
	Op    string           `json:"op"`
	Path  *string          `json:"path"`
	From  *string          `json:"from"`
	Value *json.RawMessage `json:"value"`
}

// applyPatch applies a JSON patch (RFC 6902) to a tree, which it changes.
func applyPatch(tree any, patch []byte) (any, error) {
	var ops []operation
	if err := decodeJSON(patch, &ops); err != nil {
		return nil, err
	}
	for i, op := range ops {
		var err error
		if tree, err = op.apply(tree); err != nil {
			return nil, fmt.Errorf("operation %d (%s): %w", i, op.Op, err)
		}
	}
	return tree, nil
}

func (o operation) apply(tree any) (any, error) {
	if o.Path == nil {
		return nil, errors.New("path is missing")
	}
	path, err := pointer(*o.Path)
	if err != nil {
		return nil, err
	}
	var value any
	switch o.Op {
	case "add", "replace", "test":
		if o.Value == nil {
			return nil, errors.New("value is missing")
		}
		if err := decodeJSON(*o.Value, &value); err != nil {
			return nil, err
		}
	case "move", "copy":
		if o.From == nil {
			return nil, errors.New("from is missing")
		}
		from, err := pointer(*o.From)
		if err != nil {
			return nil, err
		}
		if value, err = get(tree, from); err != nil {
			return nil, err
		}
		if o.Op == "copy" {
			value = clone(value)
			break
		}
		if len(path) > len(from) && slices.Equal(path[:len(from)], from) {
			return nil, errors.New("a value cannot be moved into itself")
		}
		if tree, err = change(tree, from, "remove", nil); err != nil {
			return nil, err
		}
	}
	switch o.Op {
	case "test":
		have, err := get(tree, path)
		if err == nil && !reflect.DeepEqual(have, value) {
			err = fmt.Errorf("%s has another value", *o.Path)
		}
		return tree, err
	case "add", "move", "copy":
		return change(tree, path, "add", value)
	case "replace", "remove":
		return change(tree, path, o.Op, value)
	}
	return nil, errors.New("the operation is not known")
}

// pointer reads a JSON pointer (RFC 6901).
func pointer(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, fmt.Errorf("%q does not start with a slash", s)
	}
	parts := strings.Split(s[1:], "/")
	for i, p := range parts {
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(p)
	}
	return parts, nil
}

func get(tree any, path []string) (any, error) {
	for _, p := range path {
		switch x := tree.(type) {
		case map[string]any:
			v, ok := x[p]
			if !ok {
				return nil, fmt.Errorf("there is no %q", p)
			}
			tree = v
		case []any:
			i, err := index(p, len(x)-1)
			if err != nil {
				return nil, err
			}
			tree = x[i]
		default:
			return nil, fmt.Errorf("there is no %q", p)
		}
	}
	return tree, nil
}

func change(tree any, path []string, op string, value any) (any, error) {
	if len(path) == 0 {
		if op == "remove" {
			return nil, errors.New("the whole document cannot be removed")
		}
		return value, nil
	}
	p, last := path[0], len(path) == 1
	switch x := tree.(type) {
	case map[string]any:
		old, ok := x[p]
		if !ok && (!last || op != "add") {
			return nil, fmt.Errorf("there is no %q", p)
		}
		switch {
		case !last:
			v, err := change(old, path[1:], op, value)
			if err != nil {
				return nil, err
			}
			x[p] = v
		case op == "remove":
			delete(x, p)
		default:
			x[p] = value
		}
		return x, nil
	case []any:
		if last && op == "add" {
			i := len(x)
			if p != "-" {
				var err error
				if i, err = index(p, len(x)); err != nil {
					return nil, err
				}
			}
			return slices.Insert(x, i, value), nil
		}
		i, err := index(p, len(x)-1)
		if err != nil {
			return nil, err
		}
		switch {
		case !last:
			x[i], err = change(x[i], path[1:], op, value)
		case op == "remove":
			return slices.Delete(x, i, i+1), nil
		default:
			x[i] = value
		}
		return x, err
	}
	return nil, fmt.Errorf("there is no %q", p)
}

func index(s string, top int) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 || i > top || s != strconv.Itoa(i) {
		return 0, fmt.Errorf("%q is no index of the list", s)
	}
	return i, nil
}

func clone(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			out[i] = clone(e)
		}
		return out
	}
	return v
}
