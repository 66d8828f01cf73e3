package aci

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// What functions do with lists, objects and numbers.

func divide(_, b int64, do func() int64) (any, error) {
	if b == 0 {
		return nil, errors.New("division by zero")
	}
	return do(), nil
}

func concatLists(args []any) (any, error) {
	var out []any
	for _, a := range args {
		list, ok := a.([]any)
		if !ok {
			return nil, errors.New("want lists only, or no list")
		}
		out = append(out, list...)
	}
	return out, nil
}

func union(args []any) (any, error) {
	if _, ok := args[0].(map[string]any); ok {
		out := map[string]any{}
		for _, a := range args {
			m, ok := a.(map[string]any)
			if !ok {
				return nil, errors.New("want objects only, or lists only")
			}
			merge(out, m)
		}
		return out, nil
	}
	all, err := concatLists(args)
	if err != nil {
		return nil, err
	}
	var out []any
	for _, x := range all.([]any) {
		if !slices.ContainsFunc(out, func(y any) bool { return equal(x, y) }) {
			out = append(out, x)
		}
	}
	return out, nil
}

// merge lays one object over another, and so the objects in them.
func merge(into, from map[string]any) {
	for k, v := range from {
		below, ok := v.(map[string]any)
		if under, both := into[k].(map[string]any); ok && both {
			under = maps.Clone(under)
			merge(under, below)
			v = under
		}
		into[k] = v
	}
}

func size(v any) (int, error) {
	switch v := v.(type) {
	case string:
		return utf8.RuneCountInString(v), nil
	case []any:
		return len(v), nil
	case map[string]any:
		return len(v), nil
	}
	return 0, fmt.Errorf("a %s has no length", typeName(v))
}

func atEnd(v any, last bool) (any, error) {
	at := func(n int) int {
		if last {
			return n - 1
		}
		return 0
	}
	switch v := v.(type) {
	case string:
		if v == "" {
			return "", nil
		}
		r := []rune(v)
		return string(r[at(len(r))]), nil
	case []any:
		if len(v) == 0 {
			return nil, nil
		}
		return v[at(len(v))], nil
	}
	return nil, fmt.Errorf("a %s has no elements", typeName(v))
}

func contains(args []any) (any, error) {
	switch v := args[0].(type) {
	case string:
		part, err := textArg(args, 1)
		return strings.Contains(v, part), err
	case []any:
		return slices.ContainsFunc(v, func(x any) bool { return equal(x, args[1]) }), nil
	case map[string]any:
		key, err := textArg(args, 1)
		for k := range v {
			if strings.EqualFold(k, key) {
				return true, err
			}
		}
		return false, err
	}
	return nil, fmt.Errorf("a %s contains nothing", typeName(args[0]))
}
