package aci

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a template. Azure refuses templates of more than 4 MiB.
const (
	maxTemplateBytes = 4 << 20
	maxTemplateDepth = 64
)

// node is a JSON value and where it stands in the text.
type node struct {
	kind       byte // one of { [ " 0 (a number) t f n
	start, end int  // bytes of the text
	text       string
	members    []member
	items      []*node
}

type member struct {
	name  string
	start int // of the name
	value *node
}

// get finds a member. Names in templates are not sensitive to case.
func (n *node) get(name string) *node {
	if n == nil || n.kind != '{' {
		return nil
	}
	for i := range n.members {
		if strings.EqualFold(n.members[i].name, name) {
			return n.members[i].value
		}
	}
	return nil
}

// parseJSON reads JSON as templates have it: with comments, which the service allows.
func parseJSON(text string) (*node, error) {
	if len(text) > maxTemplateBytes {
		return nil, fmt.Errorf("the template has %d bytes, the limit is %d", len(text), maxTemplateBytes)
	}
	if !utf8.ValidString(text) {
		return nil, errors.New("the template is not UTF-8")
	}
	p := &jsonParser{text: text}
	if strings.HasPrefix(text, "\ufeff") {
		p.pos = len("\ufeff")
	}
	n, err := p.value(0)
	if err == nil {
		if err = p.space(); err == nil && p.pos < len(text) {
			err = errors.New("text after the end of the document")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", lineOf(text, p.pos), err)
	}
	return n, nil
}

func lineOf(text string, pos int) int { return 1 + strings.Count(text[:min(pos, len(text))], "\n") }

type jsonParser struct {
	text string
	pos  int
}

// space skips white space and comments.
func (p *jsonParser) space() error {
	for p.pos < len(p.text) {
		rest := p.text[p.pos:]
		switch {
		case strings.ContainsRune(" \t\r\n", rune(rest[0])):
			p.pos++
		case strings.HasPrefix(rest, "//"):
			end := strings.IndexByte(rest, '\n')
			if end < 0 {
				end = len(rest)
			}
			p.pos += end
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				return errors.New("a comment does not end")
			}
			p.pos += end + 4
		default:
			return nil
		}
	}
	return nil
}

// next skips space and returns the byte that follows, 0 at the end.
func (p *jsonParser) next() (byte, error) {
	if err := p.space(); err != nil {
		return 0, err
	}
	if p.pos == len(p.text) {
		return 0, errors.New("the document ends early")
	}
	return p.text[p.pos], nil
}

func (p *jsonParser) value(depth int) (*node, error) {
	c, err := p.next()
	if err != nil {
		return nil, err
	}
	if depth > maxTemplateDepth {
		return nil, fmt.Errorf("values are nested more than %d deep", maxTemplateDepth)
	}
	n := &node{kind: c, start: p.pos}
	switch {
	case c == '{':
		err = p.object(n, depth)
	case c == '[':
		err = p.array(n, depth)
	case c == '"':
		n.text, err = p.string()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = '0'
		err = p.scalar(n)
	default:
		err = p.scalar(n)
		if err == nil && n.text != "true" && n.text != "false" && n.text != "null" {
			err = fmt.Errorf("%.20q is no JSON value", n.text)
		}
	}
	n.end = p.pos
	return n, err
}

func (p *jsonParser) object(n *node, depth int) error {
	p.pos++
	seen := map[string]bool{}
	for first := true; ; first = false {
		c, err := p.next()
		if err != nil {
			return err
		}
		if c == '}' && first {
			p.pos++
			return nil
		}
		if c != '"' {
			return fmt.Errorf("a member begins with %q, want its name in quotes", c)
		}
		m := member{start: p.pos}
		if m.name, err = p.string(); err != nil {
			return err
		}
		if fold := strings.ToLower(m.name); seen[fold] {
			return fmt.Errorf("there are two members %q", m.name)
		} else {
			seen[fold] = true
		}
		if c, err = p.next(); err != nil {
			return err
		}
		if c != ':' {
			return fmt.Errorf("%q follows the name %q, want a colon", c, m.name)
		}
		p.pos++
		if m.value, err = p.value(depth + 1); err != nil {
			return err
		}
		n.members = append(n.members, m)
		if c, err = p.next(); err != nil {
			return err
		}
		p.pos++
		switch c {
		case '}':
			return nil
		case ',':
		default:
			p.pos--
			return fmt.Errorf("%q follows the member %q, want a comma or the end", c, m.name)
		}
	}
}

func (p *jsonParser) array(n *node, depth int) error {
	p.pos++
	for first := true; ; first = false {
		c, err := p.next()
		if err != nil {
			return err
		}
		if c == ']' && first {
			p.pos++
			return nil
		}
		item, err := p.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
		if c, err = p.next(); err != nil {
			return err
		}
		p.pos++
		switch c {
		case ']':
			return nil
		case ',':
		default:
			p.pos--
			return fmt.Errorf("%q in a list, want a comma or the end", c)
		}
	}
}

func (p *jsonParser) string() (string, error) {
	for i := p.pos + 1; i < len(p.text); i++ {
		switch p.text[i] {
		case '\\':
			i++
		case '\n':
			return "", errors.New("a string does not end on its line")
		case '"':
			var s string
			if err := json.Unmarshal([]byte(p.text[p.pos:i+1]), &s); err != nil {
				return "", fmt.Errorf("a string: %w", err)
			}
			p.pos = i + 1
			return s, nil
		}
	}
	return "", errors.New("a string does not end")
}

// scalar reads a number or a word.
func (p *jsonParser) scalar(n *node) error {
	end := p.pos
	for end < len(p.text) && !strings.ContainsRune(" \t\r\n,:]}/[{\"", rune(p.text[end])) {
		end++
	}
	n.text = p.text[p.pos:end]
	if n.kind == '0' && !json.Valid([]byte(n.text)) {
		return fmt.Errorf("%.20q is no number", n.text)
	}
	if n.text == "" {
		return fmt.Errorf("%q where a value should be", p.text[p.pos])
	}
	p.pos = end
	return nil
}
