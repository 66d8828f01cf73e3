package server

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReference: docs/reference/broker-api.md names every route.
func TestReference(t *testing.T) {
	doc, err := os.ReadFile("../../docs/reference/broker-api.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	route := regexp.MustCompile(`Handle(?:Func)?\("((?:[A-Z]+ )?/[^"]*)"`)
	seen := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range route.FindAllStringSubmatch(string(text), -1) {
			seen++
			// The document writes NAME where the pattern has {name}; what comes before the first of them is enough.
			fixed, _, _ := strings.Cut(m[1], "{")
			if !strings.Contains(string(doc), "`"+fixed) {
				t.Errorf("%s: the document does not name %s", f, m[1])
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d routes were found", seen)
	}
}
