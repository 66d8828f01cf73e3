package rim

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Bounds of a document: real ones have 26 KB, about 80 elements and 7 levels.
const (
	// MaxDocument is the size of the largest document read, in bytes.
	MaxDocument = 256 << 10
	maxDepth    = 16
	maxElements = 1024
	maxAttrs    = 128
	maxText     = 32 << 10
)

type attrName struct{ space, name string }

// node is an element.
type node struct {
	space, name string
	attrs       map[attrName]string
	children    []*node
	text        string
}

// parseXML reads a document into nodes. Document types, entities, processing instructions and comments are refused:
// manifests have none, and all of them have been used to make two readers see different things.
func parseXML(doc []byte) (*node, error) {
	if len(doc) > MaxDocument {
		return nil, fmt.Errorf("document has %d bytes, at most %d are read", len(doc), MaxDocument)
	}
	dec := xml.NewDecoder(bytes.NewReader(doc))
	dec.CharsetReader = func(charset string, _ io.Reader) (io.Reader, error) {
		return nil, fmt.Errorf("document is in %.20q, want UTF-8", charset)
	}
	var root *node
	var open []*node
	elements := 0
	for first := true; ; first = false {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading XML: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if elements++; elements > maxElements || len(open) == maxDepth {
				return nil, fmt.Errorf("document has more than %d elements or %d levels", maxElements, maxDepth)
			}
			n, err := newNode(t)
			if err != nil {
				return nil, err
			}
			switch {
			case len(open) > 0:
				parent := open[len(open)-1]
				parent.children = append(parent.children, n)
			case root != nil:
				return nil, fmt.Errorf("document has a second root, <%s>", n.name)
			default:
				root = n
			}
			open = append(open, n)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) == 0 {
				if strings.TrimSpace(string(t)) != "" {
					return nil, errors.New("document has text outside of its root")
				}
				continue
			}
			n := open[len(open)-1]
			if len(n.text)+len(t) > maxText {
				return nil, fmt.Errorf("text of <%s> has more than %d bytes", n.name, maxText)
			}
			n.text += string(t)
		case xml.ProcInst:
			if t.Target != "xml" || !first {
				return nil, fmt.Errorf("document has a processing instruction, <?%s>", t.Target)
			}
		default:
			return nil, fmt.Errorf("document has a %T, which no manifest needs", t)
		}
	}
	if root == nil {
		return nil, errors.New("document has no root")
	}
	return root, nil
}

func newNode(t xml.StartElement) (*node, error) {
	n := &node{space: t.Name.Space, name: t.Name.Local, attrs: map[attrName]string{}}
	if len(t.Attr) > maxAttrs {
		return nil, fmt.Errorf("<%s> has %d attributes, at most %d are read", n.name, len(t.Attr), maxAttrs)
	}
	for _, a := range t.Attr {
		key := attrName{a.Name.Space, a.Name.Local}
		if _, twice := n.attrs[key]; twice {
			return nil, fmt.Errorf("<%s> has %s twice", n.name, a.Name.Local)
		}
		n.attrs[key] = a.Value
	}
	return n, nil
}

func (n *node) is(space, name string) bool { return n.space == space && n.name == name }

// child returns the one child of a name.
func (n *node) child(space, name string) (*node, error) {
	var out *node
	for _, c := range n.children {
		if !c.is(space, name) {
			continue
		}
		if out != nil {
			return nil, fmt.Errorf("<%s> has more than one <%s>", n.name, name)
		}
		out = c
	}
	if out == nil {
		return nil, fmt.Errorf("<%s> has no <%s> of %q", n.name, name, space)
	}
	return out, nil
}

func (n *node) optional(space, name string) string { return n.attrs[attrName{space, name}] }

func (n *node) attr(space, name string) (string, error) {
	v := n.optional(space, name)
	if v == "" {
		return "", fmt.Errorf("<%s> has no %s", n.name, name)
	}
	return v, nil
}

func (n *node) number(name string, least, most int) (int, error) {
	text, err := n.attr("", name)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < least || v > most {
		return 0, fmt.Errorf("%s is %.20q, want a number from %d to %d", name, text, least, most)
	}
	return v, nil
}
