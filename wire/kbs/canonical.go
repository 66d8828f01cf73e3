package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds nesting, so that hostile text cannot exhaust the stack.
const maxDepth = 64

// Canonical is the RFC 8785 form of v: members sorted by UTF-16 code units, no
// white space, one spelling for every string and number. A json.RawMessage is
// taken as the text itself; anything else is marshalled first.
//
// Text that does not have exactly one meaning is refused: duplicate members, lone
// surrogates, invalid UTF-8, numbers beyond the range of a double.
func Canonical(v any) ([]byte, error) {
	text, ok := v.(json.RawMessage)
	if !ok {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return nil, fmt.Errorf("canonical JSON: %w", err)
		}
		text = buf.Bytes()
	}
	if !utf8.Valid(text) {
		return nil, errors.New("canonical JSON: text is not UTF-8")
	}
	if !json.Valid(text) {
		return nil, errors.New("canonical JSON: text is not JSON")
	}
	c := canonicalizer{in: text}
	out, err := c.value(make([]byte, 0, len(text)), 0)
	if err != nil {
		return nil, fmt.Errorf("canonical JSON: %w", err)
	}
	return out, nil
}

// canonicalizer walks text that json.Valid accepted, so it looks only for what
// JSON allows and RFC 8785 does not.
type canonicalizer struct {
	in  []byte
	pos int
}

func (c *canonicalizer) space() {
	for c.pos < len(c.in) {
		switch c.in[c.pos] {
		case ' ', '\t', '\r', '\n':
			c.pos++
		default:
			return
		}
	}
}

// next skips white space and gives the byte there.
func (c *canonicalizer) next() (byte, error) {
	c.space()
	if c.pos >= len(c.in) {
		return 0, errors.New("text ends early")
	}
	return c.in[c.pos], nil
}

func (c *canonicalizer) value(out []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	first, err := c.next()
	if err != nil {
		return nil, err
	}
	switch first {
	case '{':
		return c.object(out, depth)
	case '[':
		return c.array(out, depth)
	case '"':
		s, err := c.string()
		if err != nil {
			return nil, err
		}
		return appendString(out, s), nil
	case 't', 'n':
		out = append(out, c.in[c.pos:c.pos+4]...)
		c.pos += 4
		return out, nil
	case 'f':
		c.pos += 5
		return append(out, "false"...), nil
	default:
		return c.number(out)
	}
}

func (c *canonicalizer) array(out []byte, depth int) ([]byte, error) {
	c.pos++
	out = append(out, '[')
	for i := 0; ; i++ {
		b, err := c.next()
		if err != nil {
			return nil, err
		}
		switch b {
		case ']':
			c.pos++
			return append(out, ']'), nil
		case ',':
			c.pos++
		}
		if i > 0 {
			out = append(out, ',')
		}
		if out, err = c.value(out, depth+1); err != nil {
			return nil, err
		}
	}
}

type canonicalMember struct {
	name  string
	units []uint16
	value []byte
}

func (c *canonicalizer) object(out []byte, depth int) ([]byte, error) {
	c.pos++
	var members []canonicalMember
	for {
		b, err := c.next()
		if err != nil {
			return nil, err
		}
		if b == '}' {
			c.pos++
			break
		}
		if b == ',' {
			c.pos++
			c.space()
		}
		name, err := c.string()
		if err != nil {
			return nil, err
		}
		if b, err = c.next(); err != nil || b != ':' {
			return nil, errors.New("member without a value")
		}
		c.pos++
		value, err := c.value(nil, depth+1)
		if err != nil {
			return nil, err
		}
		members = append(members, canonicalMember{name, utf16.Encode([]rune(name)), value})
	}
	slices.SortFunc(members, func(a, b canonicalMember) int { return slices.Compare(a.units, b.units) })
	out = append(out, '{')
	for i, m := range members {
		if i > 0 {
			if members[i-1].name == m.name {
				return nil, fmt.Errorf("member %q appears twice", m.name)
			}
			out = append(out, ',')
		}
		out = append(appendString(out, m.name), ':')
		out = append(out, m.value...)
	}
	return append(out, '}'), nil
}

// string reads the string literal at pos.
func (c *canonicalizer) string() (string, error) {
	start := c.pos
	c.pos++
	for c.pos < len(c.in) {
		switch c.in[c.pos] {
		case '"':
			c.pos++
			var s string
			if err := json.Unmarshal(c.in[start:c.pos], &s); err != nil {
				return "", err
			}
			return s, nil
		case '\\':
			n, err := c.escape()
			if err != nil {
				return "", err
			}
			c.pos += n
		default:
			c.pos++
		}
	}
	return "", errors.New("string without an end")
}

// escape gives the length of the escape at pos and refuses lone surrogates, which
// encoding/json would silently replace.
func (c *canonicalizer) escape() (int, error) {
	r, ok := hexUnit(c.in[c.pos:])
	switch {
	case !ok:
		return 2, nil
	case !utf16.IsSurrogate(r):
		return 6, nil
	}
	low, ok := hexUnit(c.in[c.pos+6:])
	if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
		return 0, errors.New("string holds a lone surrogate")
	}
	return 12, nil
}

// hexUnit reads \uXXXX at the start of b.
func hexUnit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// appendString escapes as ECMAScript's JSON.stringify does.
func appendString(out []byte, s string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := range len(s) {
		switch b := s[i]; b {
		case '"', '\\':
			out = append(out, '\\', b)
		case '\b':
			out = append(out, '\\', 'b')
		case '\t':
			out = append(out, '\\', 't')
		case '\n':
			out = append(out, '\\', 'n')
		case '\f':
			out = append(out, '\\', 'f')
		case '\r':
			out = append(out, '\\', 'r')
		default:
			if b < 0x20 {
				out = append(out, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
			} else {
				out = append(out, b)
			}
		}
	}
	return append(out, '"')
}

// number writes the literal at pos as ECMAScript's Number::toString does.
func (c *canonicalizer) number(out []byte) ([]byte, error) {
	start := c.pos
	for c.pos < len(c.in) && bytes.IndexByte([]byte("+-.0123456789eE"), c.in[c.pos]) >= 0 {
		c.pos++
	}
	literal := string(c.in[start:c.pos])
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return nil, fmt.Errorf("number %.40q: %w", literal, errors.Unwrap(err))
	}
	if f == 0 {
		return append(out, '0'), nil // also for -0
	}
	if abs := math.Abs(f); abs >= 1e-6 && abs < 1e21 {
		return strconv.AppendFloat(out, f, 'f', -1, 64), nil
	}
	text := strconv.FormatFloat(f, 'e', -1, 64)
	// Go writes at least two digits of exponent, ECMAScript as few as needed.
	if n := len(text); text[n-2] == '0' && (text[n-3] == '-' || text[n-3] == '+') {
		text = text[:n-2] + text[n-1:]
	}
	return append(out, text...), nil
}
