package kubernetes

import (
	"strings"
	"testing"
)

// TestSyntaxErrors: each names the line that is wrong, and what to do where that is known.
func TestSyntaxErrors(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1\nb: {x: y\nd:\n  e: []\n":                  "f.yaml:2: did not find expected ',' or '}' of what begins here",
		"a: 1\nb:\n\tname: x\n":                          "f.yaml:3: found character that cannot start any token; indent with blanks, not with tabs",
		"a: 1\nb:\n  c: 1\n\td: x\n":                     "f.yaml:4: found a tab character that violates indentation; indent with blanks, not with tabs",
		"a:\n  b: 1\n  c: 2\n d: 3\ne: 4\n":              "f.yaml:4: did not find expected key",
		"a:\n  - b\n  - c\n  d: 1\n":                     "f.yaml:4: did not find expected '-' indicator",
		"a: b: c\n":                                      "f.yaml:1: mapping values are not allowed in this context",
		"a: 1\n---\nb: 1\n c: 2\n":                       "f.yaml:4: mapping values are not allowed in this context",
		"a: 1\nb: \x01\n":                                "f.yaml:2: control characters are not allowed",
		"a: 1\nb: \xff\n":                                "f.yaml:2: invalid leading UTF-8 octet",
		"a: *x\n":                                        "f.yaml: unknown anchor 'x' referenced",
		"{{ if .Values.x }}\na: 1\n":                     "f.yaml:1: did not find expected <document start>; is this a template?",
		strings.Repeat("# a\n", 3000) + "a: \"1\nb: 1\n": "f.yaml:3001: found unexpected end of stream",
	} {
		_, err := Parse([]Input{{Name: "f.yaml", Data: []byte(text)}}, nil, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %s", text, err, want)
		}
	}
}
