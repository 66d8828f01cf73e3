package kubernetes

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// lines gives a text line by line and counts them, so that it is known how far the YAML reader has come: of some errors it tells where
// the block begins that they are in, which may be the first line, and of some nothing.
type lines struct {
	rest  []byte
	given int
}

// Read implements io.Reader.
func (l *lines) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		return 0, io.EOF
	}
	end := bytes.IndexByte(l.rest, '\n') + 1
	if end == 0 {
		end = len(l.rest)
	}
	n := copy(p, l.rest[:end])
	l.rest = l.rest[n:]
	if n == end {
		l.given++
	}
	return n, nil
}

var syntaxAt = regexp.MustCompile(`^(?:line (\d+): )?(?s:(.*))$`)

// syntaxError is what the YAML reader found in data when it had read the first lines of it, as a line and a message that says what to do.
// Line 0 is for the whole text.
func syntaxError(err error, data []byte, given int) (line int, message string) {
	m := syntaxAt.FindStringSubmatch(strings.TrimPrefix(err.Error(), "yaml: "))
	line, _ = strconv.Atoi(m[1]) // 0 without one
	message = m[2]
	switch {
	case strings.HasPrefix(message, "did not find expected ',' or"): // where the bracket was opened, counted from 0
		line++
		message += " of what begins here"
	case strings.HasPrefix(message, "unknown anchor"):
	case line == 0, strings.HasPrefix(message, "did not find expected '-'"), strings.HasPrefix(message, "did not find expected key"),
		strings.HasPrefix(message, "found a tab"): // the place is that of the block around it
		line = given
	}
	switch {
	case bytes.Contains(data, []byte("{{")):
		message += "; is this a template? Render it, for a chart by helm template, and give the result by -"
	case tabbed(data, line):
		message += "; indent with blanks, not with tabs"
	}
	return line, message
}

// tabbed says whether a line begins with a tab, perhaps after blanks.
func tabbed(data []byte, line int) bool {
	n := 0
	for text := range bytes.Lines(data) {
		if n++; n == line {
			return bytes.HasPrefix(bytes.TrimLeft(text, " "), []byte("\t"))
		}
	}
	return false
}
