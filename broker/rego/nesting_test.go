package rego

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestNesting: a policy cannot keep the compiler busy by brackets within brackets.
func TestNesting(t *testing.T) {
	for _, c := range [][2]string{
		{"[", "]"}, {"(", ")"}, {"{", "}"}, {`{"a":`, "}"}, {"[x | x := ", "]"}, {"{x | x := ", "}"}, {"[", " | true]"}, {"[x | x := (", ")]"},
	} {
		for _, n := range []int{maxComprehensions, 40, 4000} {
			start := time.Now()
			_, err := Compile("x", "package policy\nimport rego.v1\nallow if { y := "+strings.Repeat(c[0], n)+"0"+strings.Repeat(c[1], n)+"\n}\n")
			if took := time.Since(start); took > 10*time.Second {
				t.Fatalf("%d of %s take %v", n, c[0], took)
			}
			if n == 4000 && (!errors.Is(err, ErrPolicy) || !strings.Contains(fmt.Sprint(err), "within each other")) {
				t.Errorf("%d of %s: %v", n, c[0], err)
			}
		}
	}
	for text, want := range map[string][2]int{
		"# [[[\n[": {1, 0}, "\"[[\\\"[[\" {": {1, 0}, "`[[\\` (": {1, 0}, "[{(1)}] [[": {3, 0}, "\"[": {0, 0}, "]]][": {1, 0}, "`": {0, 0}, "\"\\": {0, 0},
		"[[x | y] | z]": {2, 2}, "[x | [y | z]] [a | b]": {2, 2}, "[x | ([y | z])]": {3, 2}, "{[a], [b | c]}": {2, 1}, "`|` | [\"|\"]": {1, 0},
	} {
		if b, c := nesting(text); b != want[0] || c != want[1] {
			t.Errorf("%q has %d brackets and %d comprehensions within each other, want %v", text, b, c, want)
		}
	}
}
