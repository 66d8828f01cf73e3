package aci

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// azureOnly are the functions whose value is known only while Azure deploys.
var azureOnly = []string{
	"copyIndex", "deployment", "environment", "extensionResourceId", "getSecret", "guid", "list", "listKeys", "listAccountSas", "listSecrets",
	"managementGroup", "newGuid", "pickZones", "providers", "reference", "references", "resourceGroup", "resourceId", "subscription", "subscriptionResourceId",
	"tenant", "tenantResourceId", "uniqueString", "utcNow", "deployer",
}

// function is a function of whole, known values.
type function struct {
	min, max int // arguments; max < 0: any number
	do       func(args []any) (any, error)
}

// call evaluates one call. Names are not sensitive to case.
func (s *scope) call(name string, args []any) (any, error) {
	lower := strings.ToLower(name)
	switch lower {
	case "parameters", "variables":
		if len(args) != 1 {
			return nil, errors.New("want one name")
		}
		key, ok := args[0].(string)
		if !ok {
			return nil, errors.New("want a name that is known")
		}
		if lower == "parameters" {
			return s.parameter(key)
		}
		return s.variable(key)
	case "concat":
		if len(args) > 0 {
			if _, ok := args[0].([]any); ok {
				break
			}
		}
		return joinText(args), nil
	case "string":
		if _, ok := args0(args).(mixed); ok {
			return args[0], nil
		}
	case "format":
		return format(args)
	case "if":
		if c, ok := args0(args).(bool); ok && len(args) == 3 {
			if c {
				return args[1], nil
			}
			return args[2], nil
		}
	case "createarray":
		return args, nil
	}
	if slices.ContainsFunc(azureOnly, func(f string) bool { return strings.EqualFold(f, name) }) {
		return open{why: name + "()"}, nil
	}
	f, ok := functions[lower]
	if !ok {
		return nil, errors.New("the function is not supported")
	}
	if len(args) < f.min || f.max >= 0 && len(args) > f.max {
		return nil, fmt.Errorf("%d arguments are too many or too few", len(args))
	}
	for _, a := range args {
		if o, yes := openPart(a); yes {
			return o, nil
		}
	}
	return f.do(args)
}

func args0(args []any) any {
	if len(args) == 0 {
		return nil
	}
	return args[0]
}

// toText is how a value looks in a text: as JSON unless it is one.
func toText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		if v {
			return "True"
		}
		return "False"
	case nil:
		return ""
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return jsonText(v)
}

func jsonText(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(v) != nil {
		return "" // values come from JSON, so this cannot be
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// format fills {0}, {1} … in its first argument. Doubled braces stand for themselves.
func format(args []any) (any, error) {
	pattern, ok := args0(args).(string)
	if !ok {
		if o, yes := openPart(args0(args)); yes {
			return o, nil
		}
		return nil, errors.New("want a format string")
	}
	var parts []any
	for pattern != "" {
		i := strings.IndexAny(pattern, "{}")
		if i < 0 {
			parts = append(parts, pattern)
			break
		}
		parts = append(parts, pattern[:i])
		if strings.HasPrefix(pattern[i+1:], pattern[i:i+1]) {
			parts = append(parts, pattern[i:i+1])
			pattern = pattern[i+2:]
			continue
		}
		end := strings.IndexByte(pattern[i:], '}')
		if pattern[i] == '}' || end < 0 {
			return nil, errors.New("a brace of the format has no partner")
		}
		n, err := strconv.Atoi(pattern[i+1 : i+end])
		if err != nil || n < 0 || n+1 >= len(args) {
			return nil, fmt.Errorf("%.20q names none of the %d values in a way that is supported", pattern[i:i+end+1], len(args)-1)
		}
		parts = append(parts, args[n+1])
		pattern = pattern[i+end+1:]
	}
	return joinText(parts), nil
}

func text1(do func(s string) (any, error)) function {
	return function{1, 1, func(args []any) (any, error) {
		s, err := textArg(args, 0)
		if err != nil {
			return nil, err
		}
		return do(s)
	}}
}

func text2(do func(a, b string) (any, error)) function {
	return function{2, 2, func(args []any) (any, error) {
		a, err := textArg(args, 0)
		if err != nil {
			return nil, err
		}
		b, err := textArg(args, 1)
		if err != nil {
			return nil, err
		}
		return do(a, b)
	}}
}

func int2(do func(a, b int64) (any, error)) function {
	return function{2, 2, func(args []any) (any, error) {
		a, aok := args[0].(int64)
		b, bok := args[1].(int64)
		if !aok || !bok {
			return nil, errors.New("want two whole numbers")
		}
		return do(a, b)
	}}
}

func compare(holds func(c int) bool) function {
	return function{2, 2, func(args []any) (any, error) {
		switch a := args[0].(type) {
		case int64:
			if b, ok := args[1].(int64); ok {
				return holds(int(min(max(a-b, -1), 1))), nil
			}
		case string:
			if b, ok := args[1].(string); ok {
				return holds(strings.Compare(a, b)), nil
			}
		}
		return nil, errors.New("want two numbers or two strings")
	}}
}

func textArg(args []any, i int) (string, error) {
	s, ok := args[i].(string)
	if !ok {
		return "", fmt.Errorf("argument %d is a %s, want a string", i+1, typeName(args[i]))
	}
	return s, nil
}

func logic(args []any, zero bool) (any, error) {
	for _, a := range args {
		b, ok := a.(bool)
		if !ok {
			return nil, fmt.Errorf("a %s is no boolean", typeName(a))
		}
		if b != zero {
			return b, nil
		}
	}
	return zero, nil
}

// equal compares values of one type; objects are equal when their members are.
func equal(a, b any) bool { return typeName(a) == typeName(b) && jsonText(a) == jsonText(b) }

var functions = map[string]function{
	"tolower":    text1(func(s string) (any, error) { return strings.ToLower(s), nil }),
	"toupper":    text1(func(s string) (any, error) { return strings.ToUpper(s), nil }),
	"trim":       text1(func(s string) (any, error) { return strings.TrimSpace(s), nil }),
	"base64":     text1(func(s string) (any, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil }),
	"startswith": text2(func(a, b string) (any, error) { return strings.HasPrefix(strings.ToLower(a), strings.ToLower(b)), nil }),
	"endswith":   text2(func(a, b string) (any, error) { return strings.HasSuffix(strings.ToLower(a), strings.ToLower(b)), nil }),
	"base64tostring": text1(func(s string) (any, error) {
		raw, err := base64.StdEncoding.DecodeString(s)
		if err == nil && !utf8.Valid(raw) {
			err = errors.New("the text is not UTF-8")
		}
		return string(raw), err
	}),
	"json": text1(func(s string) (any, error) {
		n, err := parseJSON(s)
		if err != nil {
			return nil, err
		}
		return n.literal()
	}),
	"string": {1, 1, func(args []any) (any, error) { return toText(args[0]), nil }},
	"int": {1, 1, func(args []any) (any, error) {
		if n, ok := args[0].(int64); ok {
			return n, nil
		}
		s, err := textArg(args, 0)
		if err != nil {
			return nil, err
		}
		return strconv.ParseInt(s, 10, 64)
	}},
	"bool": {1, 1, func(args []any) (any, error) {
		switch v := args[0].(type) {
		case bool:
			return v, nil
		case int64:
			return v != 0, nil
		case string:
			switch strings.ToLower(v) {
			case "true", "1":
				return true, nil
			case "false", "0":
				return false, nil
			}
		}
		return nil, fmt.Errorf("%.20s is no boolean", jsonText(args[0]))
	}},
	"true":  {0, 0, func([]any) (any, error) { return true, nil }},
	"false": {0, 0, func([]any) (any, error) { return false, nil }},
	"null":  {0, 0, func([]any) (any, error) { return nil, nil }},
	"not": {1, 1, func(args []any) (any, error) {
		b, ok := args[0].(bool)
		if !ok {
			return nil, errors.New("want a boolean")
		}
		return !b, nil
	}},
	"and":             {2, -1, func(args []any) (any, error) { return logic(args, true) }},
	"or":              {2, -1, func(args []any) (any, error) { return logic(args, false) }},
	"if":              {3, 3, func([]any) (any, error) { return nil, errors.New("the condition is no boolean") }},
	"equals":          {2, 2, func(args []any) (any, error) { return equal(args[0], args[1]), nil }},
	"less":            compare(func(c int) bool { return c < 0 }),
	"lessorequals":    compare(func(c int) bool { return c <= 0 }),
	"greater":         compare(func(c int) bool { return c > 0 }),
	"greaterorequals": compare(func(c int) bool { return c >= 0 }),
	"add":             int2(func(a, b int64) (any, error) { return a + b, nil }),
	"sub":             int2(func(a, b int64) (any, error) { return a - b, nil }),
	"mul":             int2(func(a, b int64) (any, error) { return a * b, nil }),
	"div":             int2(func(a, b int64) (any, error) { return divide(a, b, func() int64 { return a / b }) }),
	"mod":             int2(func(a, b int64) (any, error) { return divide(a, b, func() int64 { return a % b }) }),
	"concat":          {1, -1, concatLists},
	"union":           {2, -1, union},
	"coalesce": {1, -1, func(args []any) (any, error) {
		i := slices.IndexFunc(args, func(a any) bool { return a != nil })
		if i < 0 {
			return nil, nil
		}
		return args[i], nil
	}},
	"createobject": {0, -1, func(args []any) (any, error) {
		out := map[string]any{}
		for i := 0; i+1 < len(args); i += 2 {
			k, err := textArg(args, i)
			if err != nil {
				return nil, err
			}
			out[k] = args[i+1]
		}
		if len(args)%2 == 1 {
			return nil, errors.New("a name has no value")
		}
		return out, nil
	}},
	"array": {1, 1, func(args []any) (any, error) {
		if _, ok := args[0].([]any); ok {
			return args[0], nil
		}
		return []any{args[0]}, nil
	}},
	"length": {1, 1, func(args []any) (any, error) {
		n, err := size(args[0])
		return int64(n), err
	}},
	"empty": {1, 1, func(args []any) (any, error) {
		if args[0] == nil {
			return true, nil
		}
		n, err := size(args[0])
		return n == 0, err
	}},
	"first":    {1, 1, func(args []any) (any, error) { return atEnd(args[0], false) }},
	"last":     {1, 1, func(args []any) (any, error) { return atEnd(args[0], true) }},
	"contains": {2, 2, contains},
	"replace": {3, 3, func(args []any) (any, error) {
		var s [3]string
		for i := range s {
			var err error
			if s[i], err = textArg(args, i); err != nil {
				return nil, err
			}
		}
		if s[1] == "" {
			return nil, errors.New("nothing is to be replaced")
		}
		return strings.ReplaceAll(s[0], s[1], s[2]), nil
	}},
	"split": text2(func(s, sep string) (any, error) {
		if sep == "" {
			return []any{s}, nil
		}
		var out []any
		for part := range strings.SplitSeq(s, sep) {
			out = append(out, part)
		}
		return out, nil
	}),
	"join": {2, 2, func(args []any) (any, error) {
		list, ok := args[0].([]any)
		sep, err := textArg(args, 1)
		if !ok || err != nil {
			return nil, errors.New("want a list and a separator")
		}
		words := make([]string, len(list))
		for i, x := range list {
			words[i] = toText(x)
		}
		return strings.Join(words, sep), nil
	}},
	"substring": {2, 3, func(args []any) (any, error) {
		s, err := textArg(args, 0)
		if err != nil {
			return nil, err
		}
		start, ok := args[1].(int64)
		r := []rune(s)
		length := int64(len(r)) - start
		if ok && len(args) == 3 {
			length, ok = args[2].(int64)
		}
		if !ok || start < 0 || length < 0 || start > int64(len(r)) || length > int64(len(r))-start {
			return nil, errors.New("the part is not inside the text")
		}
		return string(r[start : start+length]), nil
	}},
}
