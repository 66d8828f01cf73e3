package aci

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// place is where the policy of a group goes in the text of its template.
type place struct {
	object     *node // the object that gets a member, or whose member is replaced
	value      *node // the value to replace; nil: there is none
	properties bool  // object is properties, and has no confidentialComputeProperties
}

// edit replaces a part of a text.
type edit struct {
	start, end int
	text       string
}

func placeOf(props *node) place {
	cc := props.get("confidentialComputeProperties")
	if cc == nil {
		return place{object: props, properties: true}
	}
	if cc.kind != '{' {
		return place{object: props, value: cc, properties: true}
	}
	return place{object: cc, value: cc.get("ccePolicy")}
}

// Insert puts a policy in base64 into the template as that of group g, which must be one of its groups.
func (t *Template) Insert(g *Group, base64Policy string) error {
	if !slices.Contains(t.Groups, g) {
		return errors.New("inserting a policy: the group is of another template")
	}
	p := g.ccePolicy
	value, name := `"`+base64Policy+`"`, "ccePolicy"
	unit := indentUnit(t.text)
	if p.properties {
		in := t.memberIndent(p.object)
		value = "{" + in.newline + in.text + unit + `"ccePolicy": ` + value + in.newline + in.text + "}"
		if in.newline == "" {
			value = `{"ccePolicy": "` + base64Policy + `"}`
		}
		name = "confidentialComputeProperties"
	}
	if p.value != nil {
		t.edits = append(t.edits, edit{p.value.start, p.value.end, value})
		return nil
	}
	in := t.memberIndent(p.object)
	if len(p.object.members) == 0 {
		close := strings.TrimSuffix(in.text, unit)
		text := "{" + in.newline + in.text + fmt.Sprintf("%q: ", name) + value + in.newline + close + "}"
		t.edits = append(t.edits, edit{p.object.start, p.object.end, text})
		return nil
	}
	sep := in.newline + in.text
	if in.newline == "" {
		sep = " "
	}
	at := p.object.members[0].start
	t.edits = append(t.edits, edit{at, at, fmt.Sprintf("%q: ", name) + value + "," + sep})
	return nil
}

// Text is the template with the policies that were inserted. All else is as it was, byte for byte.
func (t *Template) Text() string {
	edits := slices.Clone(t.edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return a.start - b.start })
	var b strings.Builder
	pos := 0
	for _, e := range edits {
		b.WriteString(t.text[pos:e.start] + e.text)
		pos = e.end
	}
	return b.String() + t.text[pos:]
}

type indent struct{ newline, text string }

// memberIndent is what stands before the members of an object.
func (t *Template) memberIndent(n *node) indent {
	at, extra := n.start, indentUnit(t.text)
	if len(n.members) > 0 {
		at, extra = n.members[0].start, ""
		if !strings.Contains(t.text[n.start:at], "\n") {
			return indent{}
		}
	}
	start := strings.LastIndexByte(t.text[:at], '\n') + 1
	if start == 0 {
		return indent{}
	}
	line := t.text[start:at]
	text := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	newline := "\n"
	if start >= 2 && t.text[start-2] == '\r' {
		newline = "\r\n"
	}
	return indent{newline, text + extra}
}

// indentUnit is the white space of the first indented line.
func indentUnit(text string) string {
	for line := range strings.Lines(text) {
		body := strings.TrimLeft(line, " \t")
		if n := len(line) - len(body); n > 0 && strings.TrimSpace(body) != "" {
			return line[:n]
		}
	}
	return "  "
}
