package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// keyLines is where the keys and tables of a file stand, by dotted name. Of several tables of a list it knows the first.
type keyLines map[string]int

// readLines finds the lines of a text that decodes.
func readLines(raw []byte) keyLines {
	out := keyLines{}
	line, seen := 1, uint32(0)
	at := func(r unstable.Range) int {
		if r.Offset < seen { // never: keys come in order
			line, seen = 1, 0
		}
		line += bytes.Count(raw[seen:r.Offset], []byte{'\n'})
		seen = r.Offset
		return line
	}
	note := func(table string, keys unstable.Iterator) string {
		name, first := table, 0
		for keys.Next() {
			name = join(name, string(keys.Node().Data))
			if l := at(keys.Node().Raw); first == 0 {
				first = l
			}
		}
		if _, ok := out[name]; !ok {
			out[name] = first
		}
		return name
	}
	var inside func(name string, value *unstable.Node)
	inside = func(name string, value *unstable.Node) {
		if value.Kind != unstable.InlineTable {
			return
		}
		for members := value.Children(); members.Next(); {
			inside(note(name, members.Node().Key()), members.Node().Value())
		}
	}
	var p unstable.Parser
	p.Reset(raw)
	table := ""
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = note("", e.Key())
		case unstable.KeyValue:
			inside(note(table, e.Key()), e.Value())
		}
	}
	return out
}

func join(table, key string) string {
	if table == "" {
		return key
	}
	return table + "." + key
}

// faultWord is one name at the beginning of a fault, with what is between it and the next.
var faultWord = regexp.MustCompile(`\A\[?([a-z][a-z0-9_.-]*)(?:\[\d+\])?\]?(: | |\z)`)

// of is the line of what a fault begins with: "server.listen is …", "resources: vault: url is …". It is that of the table where the file
// has no such key, and 0 where it has nothing of it.
func (k keyLines) of(fault string) int {
	line, name := 0, ""
	for {
		m := faultWord.FindStringSubmatch(fault)
		if m == nil {
			return line
		}
		name = join(name, m[1])
		l, ok := k[name]
		for table := name; !ok && line == 0 && strings.Contains(table, "."); {
			table = table[:strings.LastIndexByte(table, '.')]
			l, ok = k[table]
		}
		if ok {
			line = l
		}
		if m[2] != ": " {
			return line
		}
		fault = fault[len(m[0]):]
	}
}

// located is a fault with the line it is about.
type located struct {
	error
	line int
}

func (l located) Error() string { return fmt.Sprintf("line %d: %v", l.line, l.error) }

func (l located) Unwrap() error { return l.error }

// locate puts lines before faults. Without a place in the file, such as for what is missing in it, they stay as they are.
func locate(err error, raw []byte) error {
	if err == nil {
		return nil
	}
	faults := []error{err}
	if list, ok := err.(interface{ Unwrap() []error }); ok { // what Validate joined
		faults = list.Unwrap()
	}
	lines := readLines(raw)
	for i, f := range faults {
		if n := lines.of(f.Error()); n > 0 {
			faults[i] = located{f, n}
		}
	}
	return errors.Join(faults...)
}
