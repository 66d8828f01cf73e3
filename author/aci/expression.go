package aci

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A string of a template that begins with one bracket is an expression. Its value may depend on what only Azure knows, such as the
// address of another resource or a parameter that nobody has given. Such values are not guessed: they are open.

// open is a value, or a part of a text, that is not known before deployment.
type open struct {
	why       string // what it depends on
	parameter string // the parameter without a value on which it depends
}

// mixed is a text of known and open parts: strings and open values.
type mixed []any

// pattern is the RE2 expression that such a text matches.
func (m mixed) pattern() string {
	var b strings.Builder
	for _, part := range m {
		if s, ok := part.(string); ok {
			b.WriteString(regexp.QuoteMeta(s))
		} else {
			b.WriteString("(?s:.*)")
		}
	}
	return b.String()
}

// isOpen reports whether a value is not wholly known, and on what it depends.
func isOpen(v any) (why string, yes bool) {
	o, yes := openPart(v)
	return o.why, yes
}

// openPart is the first part of a value that is not known.
func openPart(v any) (o open, yes bool) {
	switch v := v.(type) {
	case open:
		return v, true
	case mixed:
		for _, part := range v {
			if o, ok := part.(open); ok {
				return o, true
			}
		}
		return open{}, true
	case []any:
		for _, x := range v {
			if o, yes := openPart(x); yes {
				return o, true
			}
		}
	case map[string]any:
		for _, x := range v {
			if o, yes := openPart(x); yes {
				return o, true
			}
		}
	}
	return open{}, false
}

// OpenError is a value that the policy needs and the template leaves open.
type OpenError struct {
	Parameter string // the parameter that has no value; "" if it is something else that only Azure knows
	Variable  bool   // it is that of an environment variable, which TemplateOptions.AllowOpen lets be anything
	text      string
}

func (e *OpenError) Error() string { return e.text }

// join makes one text of several.
func joinText(parts []any) any {
	var out mixed
	text := func(s string) {
		if n := len(out); n > 0 {
			if last, ok := out[n-1].(string); ok {
				out[n-1] = last + s
				return
			}
		}
		out = append(out, s)
	}
	for _, part := range parts {
		switch part := part.(type) {
		case mixed:
			for _, x := range part {
				if s, ok := x.(string); ok {
					text(s)
				} else {
					out = append(out, x)
				}
			}
		case open:
			out = append(out, part)
		default:
			text(toText(part))
		}
	}
	switch {
	case len(out) == 0:
		return ""
	case len(out) == 1:
		if s, ok := out[0].(string); ok {
			return s
		}
	}
	return out
}

// isExpression reports whether a string of a template is one, and gives its text.
func isExpression(s string) (string, bool) {
	if len(s) < 2 || s[0] != '[' || s[len(s)-1] != ']' || strings.HasPrefix(s, "[[") {
		return "", false
	}
	return s[1 : len(s)-1], true
}

// Bounds of one expression and of all of a template.
const (
	maxExpression = 24576 // characters; Azure's limit
	maxCallDepth  = 64
	maxSteps      = 100_000
	maxText       = 1 << 20
)

type exprParser struct {
	text  string
	pos   int
	scope *scope
	depth int
}

func (s *scope) evaluate(text string) (any, error) {
	if len(text) > maxExpression {
		return nil, fmt.Errorf("the expression has %d characters, the limit is %d", len(text), maxExpression)
	}
	p := &exprParser{text: text, scope: s}
	v, err := p.expression()
	if err == nil {
		if p.space(); p.pos < len(p.text) {
			err = fmt.Errorf("%.20q is left over", p.text[p.pos:])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("expression [%.200s]: %w", text, err)
	}
	return v, nil
}

func (p *exprParser) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

func (p *exprParser) peek() byte {
	if p.space(); p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *exprParser) expression() (any, error) {
	if p.depth++; p.depth > maxCallDepth {
		return nil, fmt.Errorf("calls are nested more than %d deep", maxCallDepth)
	}
	defer func() { p.depth-- }()
	if p.scope.steps++; p.scope.steps > maxSteps {
		return nil, errors.New("the template's expressions are too much work")
	}
	v, err := p.primary()
	for err == nil {
		switch p.peek() {
		case '.':
			p.pos++
			p.space()
			v, err = property(v, p.word())
		case '[':
			p.pos++
			var key any
			if key, err = p.expression(); err != nil {
				break
			}
			if p.peek() != ']' {
				err = errors.New("a bracket is not closed")
				break
			}
			p.pos++
			v, err = element(v, key)
		default:
			return v, nil
		}
	}
	return nil, err
}

func (p *exprParser) word() string {
	start := p.pos
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '$' {
			break
		}
		p.pos++
	}
	return p.text[start:p.pos]
}

func (p *exprParser) primary() (any, error) {
	c := p.peek()
	switch {
	case c == '\'':
		return p.quoted()
	case c == '-' || c >= '0' && c <= '9':
		start := p.pos
		p.pos++
		p.word()
		n, err := strconv.ParseInt(p.text[start:p.pos], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%.20q is no whole number", p.text[start:p.pos])
		}
		return n, nil
	}
	name := p.word()
	if name == "" {
		return nil, fmt.Errorf("a value is missing at character %d", p.pos+1)
	}
	if p.peek() == '.' {
		return nil, fmt.Errorf("functions of the template's own, such as %s., are not supported", name)
	}
	if p.peek() != '(' {
		return nil, fmt.Errorf("%q is neither a call nor a value", name)
	}
	p.pos++
	var args []any
	for first := true; ; first = false {
		if p.peek() == ')' && first {
			break
		}
		v, err := p.expression()
		if err != nil {
			return nil, err
		}
		args = append(args, v)
		if c := p.peek(); c == ')' {
			break
		} else if c != ',' {
			return nil, fmt.Errorf("the arguments of %s do not end", name)
		}
		p.pos++
	}
	p.pos++
	v, err := p.scope.call(name, args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if s, ok := v.(string); ok && len(s) > maxText {
		return nil, fmt.Errorf("%s: the result has more than %d bytes", name, maxText)
	}
	return v, nil
}

func (p *exprParser) quoted() (any, error) {
	var b strings.Builder
	for i := p.pos + 1; i < len(p.text); i++ {
		if p.text[i] != '\'' {
			b.WriteByte(p.text[i])
			continue
		}
		if i+1 < len(p.text) && p.text[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		p.pos = i + 1
		return b.String(), nil
	}
	return nil, errors.New("a string does not end")
}

func property(v any, name string) (any, error) {
	if name == "" {
		return nil, errors.New("the name of a property is missing")
	}
	switch v := v.(type) {
	case open:
		return v, nil
	case map[string]any:
		for k, x := range v {
			if strings.EqualFold(k, name) {
				return x, nil
			}
		}
		return nil, fmt.Errorf("there is no property %q", name)
	}
	return nil, fmt.Errorf("property %q of a %s", name, typeName(v))
}

func element(v, key any) (any, error) {
	if o, ok := v.(open); ok {
		return o, nil
	}
	if o, yes := openPart(key); yes {
		return o, nil
	}
	switch key := key.(type) {
	case string:
		return property(v, key)
	case int64:
		list, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("an element of a %s", typeName(v))
		}
		if key < 0 || key >= int64(len(list)) {
			return nil, fmt.Errorf("element %d of a list of %d", key, len(list))
		}
		return list[key], nil
	}
	return nil, fmt.Errorf("a %s is no index", typeName(key))
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case int64, float64:
		return "number"
	case string, mixed:
		return "string"
	case []any:
		return "list"
	case map[string]any:
		return "object"
	}
	return "value that is known only in Azure"
}
