package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that stands in the way.
type Problem struct {
	File    string
	Line    int    // 0: of the whole file
	Object  string // such as Deployment/web; may be empty
	Path    string // such as spec.containers[0].image; may be empty
	Message string
	Err     error // what Message is about, for errors.As; may be nil
}

// problem takes what format has as %w along.
func problem(file string, line int, object, path, format string, args ...any) Problem {
	err := fmt.Errorf(format, args...)
	return Problem{file, line, object, path, err.Error(), errors.Unwrap(err)}
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Object != "" {
		b.WriteString(p.Object + ": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	return b.String() + p.Message
}

// MaxProblems is how many problems are looked for: more of them help nobody. maxShown of them are in a message.
const (
	MaxProblems = 1000
	maxShown    = 100
)

// Problems are all problems of one run, in the order of files and lines.
type Problems []Problem

func (ps Problems) Error() string {
	var lines []string
	for _, p := range ps[:min(len(ps), maxShown)] {
		lines = append(lines, p.String())
	}
	if len(ps) == 1 {
		return lines[0]
	}
	if len(ps) > maxShown {
		lines = append(lines, "...")
	}
	return fmt.Sprintf("%d problems\n  %s", len(ps), strings.Join(lines, "\n  "))
}

// Err is nil when there are none; otherwise the problems without repetitions.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	out := slices.Clone(ps)
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return slices.CompactFunc(out, func(a, b Problem) bool { return a.String() == b.String() })
}

// Unwrap is for errors.Is and errors.As.
func (ps Problems) Unwrap() []error {
	var out []error
	for _, p := range ps {
		if p.Err != nil {
			out = append(out, p.Err)
		}
	}
	return out
}

// ErrUnknownField is a member of an object that is not known here.
var ErrUnknownField = errors.New("unknown field")
