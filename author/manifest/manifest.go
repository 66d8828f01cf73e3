// Package manifest turns a Kubernetes pod manifest into a launch plan: the exact
// requests that start the pod in its guest.
//
// Parse reads YAML into small typed structs and reports every problem of a file
// at once, each with the path of the field and its line. What Cloister does not
// honour is an error that names the field; nothing that changes what runs is
// skipped silently. Plan resolves images to digests and writes the requests.
// Both are deterministic: the requests become policy, and the policy is measured.
package manifest

import (
	"fmt"
	"slices"
	"strings"
)

// Manifest is one pod with the ConfigMaps and Secrets that it refers to.
type Manifest struct {
	Pod        *Pod
	ConfigMaps map[string]*ConfigMap
	Secrets    map[string]*Secret
	// Warnings are facts that the user should know but that are no errors.
	Warnings []string
}

// Problem is one fault of a manifest.
type Problem struct {
	File string
	Line int // 0 if unknown
	Path string
	Text string
}

func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	} else if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Error lists all problems of a manifest.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return "manifest: " + e.Problems[0].String()
	}
	lines := make([]string, 0, len(e.Problems)+1)
	lines = append(lines, fmt.Sprintf("manifest: %d problems", len(e.Problems)))
	for _, p := range e.Problems {
		lines = append(lines, "  "+p.String())
	}
	return strings.Join(lines, "\n")
}

// problems gathers faults while parsing and checking.
type problems struct {
	list []Problem
}

const maxProblems = 100

func (ps *problems) add(file string, line int, path, format string, args ...any) {
	if len(ps.list) < maxProblems {
		ps.list = append(ps.list, Problem{File: file, Line: line, Path: path, Text: fmt.Sprintf(format, args...)})
	}
}

func (ps *problems) err() error {
	if len(ps.list) == 0 {
		return nil
	}
	slices.SortStableFunc(ps.list, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return &Error{Problems: ps.list}
}
