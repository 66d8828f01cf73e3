package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/internal/smallfile"
)

// maxDocument bounds what is read of a file that should hold a policy, an initdata document, a template or the like, in bytes. It is more
// than any of them may have.
const maxDocument = 32 << 20

// readFile reads a file that is not larger than maxDocument.
func readFile(name string) ([]byte, error) {
	return smallfile.Read(name, maxDocument)
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(raw) > maxDocument {
		err = fmt.Errorf("%s has more than %d bytes", name, maxDocument)
	}
	return raw, err
}

// readText is a file, or standard input for "-", that should hold text.
func (a *app) readText(file, what string) (string, error) {
	var raw []byte
	var err error
	if file == "-" {
		file = "standard input"
		raw, err = readBounded(a.stdin, file)
	} else {
		raw, err = readFile(file)
	}
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", what, err)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return "", fmt.Errorf("reading %s: %s is empty", what, file)
	}
	if !utf8.Valid(raw) || bytes.IndexByte(raw, 0) >= 0 {
		return "", fmt.Errorf("reading %s: %s is no text", what, file)
	}
	return string(raw), nil
}

// harmless is a text of several lines without what could steer a terminal: errors quote what files and servers say.
func harmless(s string) string {
	odd := func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsGraphic(r) }
	if !strings.ContainsFunc(s, odd) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if odd(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// templateHint says what to do about problems in lines that a program for templates should have filled in.
func templateHint(err error, inputs []kubernetes.Input) error {
	var problems kubernetes.Problems
	if !errors.As(err, &problems) {
		return err
	}
	for _, p := range problems {
		if p.Path == "" { // of the syntax, which says so itself
			continue
		}
		for _, in := range inputs {
			lines := bytes.Split(in.Data, []byte("\n"))
			if in.Name == p.File && p.Line > 0 && p.Line <= len(lines) && bytes.Contains(lines[p.Line-1], []byte("{{")) {
				return hint(err, "line %d of %s is part of a template: render it, for a chart by `helm template`, and give the result by -", p.Line, printable(p.File))
			}
		}
	}
	return err
}
