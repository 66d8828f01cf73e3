package kubernetes

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// edit replaces Data[from:to] by text.
type edit struct {
	from, to int
	text     string
}

// SetAnnotation sets an annotation of the workload's pods. value must be without characters that YAML gives a meaning.
func (w *Workload) SetAnnotation(key, value string) error {
	meta := own(w.pod, "metadata")
	annotations := own(meta.value, "annotations")
	old := own(annotations.value, key)
	f := w.file
	var e edit
	var err error
	switch {
	case old.value != nil:
		e, err = f.replaceScalar(old.value, value)
	case annotations.key != nil:
		e, err = f.insert(annotations, key, value)
	case meta.key != nil:
		e, err = f.insert(meta, "annotations", key, value)
	default:
		e, err = f.insert(pair{value: w.pod}, "metadata", "annotations", key, value)
	}
	if err != nil {
		return fmt.Errorf("%s:%d: %s: setting annotation %s: %w", w.File, w.pod.Line, w.Object(), key, err)
	}
	f.edits = append(f.edits, e)
	f.meant = append(f.meant, meaning{w.doc, append(slices.Clone(w.steps), "metadata", "annotations", key), value})
	return nil
}

// SetImage changes the image of a container of the workload.
func (w *Workload) SetImage(c *Container, image string) error {
	n := own(c.Node, "image").value
	if n == nil {
		return fmt.Errorf("%s:%d: %s: container %s has no image of its own to change", w.File, c.Line(), w.Object(), c.Name)
	}
	e, err := w.file.replaceScalar(n, image)
	if err != nil {
		return fmt.Errorf("%s:%d: %s: setting the image of container %s: %w", w.File, n.Line, w.Object(), c.Name, err)
	}
	steps := append(slices.Clone(w.steps), "spec")
	if i := slices.IndexFunc(w.Spec.Containers, func(x Container) bool { return x.Node == c.Node }); i >= 0 {
		steps = append(steps, "containers", i)
	} else {
		i := slices.IndexFunc(w.Spec.InitContainers, func(x Container) bool { return x.Node == c.Node })
		steps = append(steps, "initContainers", i)
	}
	w.file.edits = append(w.file.edits, e)
	w.file.meant = append(w.file.meant, meaning{w.doc, append(steps, "image"), image})
	return nil
}

// Text is the file with all changes made. That they are all that changed has been checked.
func (f *File) Text() ([]byte, error) {
	edits := slices.Clone(f.edits)
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	edits = slices.Compact(edits) // two workloads by one alias
	var out bytes.Buffer
	at := 0
	for _, e := range edits {
		if e.from < at {
			return nil, fmt.Errorf("%s: two changes meet at one place; are parts of it used twice by an alias?", f.Name)
		}
		out.Write(f.Data[at:e.from])
		out.WriteString(e.text)
		at = e.to
	}
	out.Write(f.Data[at:])
	if err := f.check(out.Bytes()); err != nil {
		return nil, fmt.Errorf("%s: changing it in place: %w", f.Name, err)
	}
	return out.Bytes(), nil
}

// pair is a member of a mapping, without following aliases.
type pair struct{ key, value *yaml.Node }

func own(n *yaml.Node, key string) pair {
	if n == nil || n.Kind != yaml.MappingNode {
		return pair{}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return pair{n.Content[i], n.Content[i+1]}
		}
	}
	return pair{}
}

var errAlias = errors.New("it stands behind an alias; write it out")

// insert makes a member in the mapping m.value: path of keys and at last the value. A missing mapping (m.value null) is made.
func (f *File) insert(m pair, path ...string) (edit, error) {
	n := m.value
	eol := "\n"
	if bytes.Contains(f.Data, []byte("\r\n")) {
		eol = "\r\n"
	}
	switch {
	case n.Kind == yaml.AliasNode:
		return edit{}, errAlias
	case isNull(n):
		return f.fillNull(m, eol, path)
	case n.Kind != yaml.MappingNode:
		return edit{}, fmt.Errorf("expected a mapping, got %s", kindName(n))
	case n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0:
		at, err := f.offset(n.Line, n.Column)
		if err != nil {
			return edit{}, err
		}
		// An anchor or a tag may stand in front.
		brace := bytes.IndexByte(f.Data[at:], '{')
		if brace < 0 || bytes.IndexByte(f.Data[at:at+brace], '\n') >= 0 {
			return edit{}, errors.New("the mapping is not found in the text")
		}
		text := flow(path)
		if len(n.Content) > 0 {
			text += ", "
		}
		return edit{at + brace + 1, at + brace + 1, text}, nil
	}
	first := n.Content[0]
	at, err := f.offset(first.Line, first.Column)
	if err != nil {
		return edit{}, err
	}
	indent := strings.Repeat(" ", first.Column-1)
	return edit{at, at, block(indent, eol, path) + eol + indent}, nil
}

// fillNull gives a member with no value the mapping of path.
func (f *File) fillNull(m pair, eol string, path []string) (edit, error) {
	if m.key == nil {
		return edit{}, errors.New("it is empty")
	}
	if m.value.Value != "" { // null or ~
		at, err := f.offset(m.value.Line, m.value.Column)
		if err != nil {
			return edit{}, err
		}
		if !bytes.HasPrefix(f.Data[at:], []byte(m.value.Value)) {
			return edit{}, errors.New("the value is not found in the text")
		}
		return edit{at, at + len(m.value.Value), "{" + flow(path) + "}"}, nil
	}
	at, err := f.offset(m.key.Line, m.key.Column)
	if err != nil {
		return edit{}, err
	}
	end := len(f.Data)
	if i := bytes.IndexByte(f.Data[at:], '\n'); i >= 0 {
		end = at + i
		if end > at && f.Data[end-1] == '\r' {
			end--
		}
	}
	indent := strings.Repeat(" ", m.key.Column-1+2)
	return edit{end, end, eol + indent + block(indent, eol, path)}, nil
}

// block writes nested members, the first without its indentation.
func block(indent, eol string, path []string) string {
	var b strings.Builder
	last := len(path) - 1
	for i, key := range path[:last] {
		if i > 0 {
			b.WriteString(eol + indent + strings.Repeat("  ", i))
		}
		b.WriteString(key + ":")
	}
	return b.String() + " " + path[last]
}

func flow(path []string) string {
	last := len(path) - 1
	out := strconv.Quote(path[last-1]) + ": " + strconv.Quote(path[last])
	for i := last - 2; i >= 0; i-- {
		out = strconv.Quote(path[i]) + ": {" + out + "}"
	}
	return out
}

// replaceScalar replaces the text of a scalar, and keeps its quotes.
func (f *File) replaceScalar(n *yaml.Node, value string) (edit, error) {
	if n.Kind == yaml.AliasNode {
		return edit{}, errAlias
	}
	if n.Kind != yaml.ScalarNode {
		return edit{}, fmt.Errorf("expected text, got %s", kindName(n))
	}
	at, err := f.offset(n.Line, n.Column)
	if err != nil {
		return edit{}, err
	}
	rest := f.Data[at:]
	for len(rest) > 0 && (rest[0] == '&' || rest[0] == '!') { // anchor, tag
		i := bytes.IndexAny(rest, " \r\n")
		if i < 0 {
			break
		}
		at += i + len(rest[i:]) - len(bytes.TrimLeft(rest[i:], " "))
		rest = f.Data[at:]
	}
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		end := f.blockEnd(n, at)
		return edit{at, end, value}, nil
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && len(rest) > 0:
		end := quotedEnd(rest)
		if end < 0 {
			return edit{}, errors.New("the value is not found in the text")
		}
		return edit{at, at + end, string(rest[0]) + value + string(rest[0])}, nil
	case isNull(n) && n.Value == "":
		return edit{}, errors.New("it is empty; remove it")
	case bytes.HasPrefix(rest, []byte(n.Value)):
		return edit{at, at + len(n.Value), value}, nil
	}
	return edit{}, errors.New("it spans several lines; write it in quotes")
}

// quotedEnd is the index after the closing quote of what text starts with.
func quotedEnd(text []byte) int {
	quote := text[0]
	for i := 1; i < len(text); i++ {
		switch {
		case quote == '"' && text[i] == '\\':
			i++
		case text[i] != quote:
		case quote == '\'' && i+1 < len(text) && text[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return -1
}

// blockEnd is the end of the last line of a literal or folded scalar: those that follow and are indented deeper than the
// line that it starts on, or empty. The line break after it stays.
func (f *File) blockEnd(n *yaml.Node, at int) int {
	start := bytes.LastIndexByte(f.Data[:at], '\n') + 1
	depth := indentOf(f.Data[start:])
	end := at
	for {
		i := bytes.IndexByte(f.Data[end:], '\n')
		if i < 0 {
			return len(f.Data)
		}
		next := f.Data[end+i+1:]
		line, _, _ := bytes.Cut(next, []byte("\n"))
		if blank := len(bytes.TrimSpace(line)) == 0; !blank && indentOf(line) <= depth {
			return trimEnd(f.Data, at, end+i)
		}
		end += i + 1
		if len(next) == 0 {
			return trimEnd(f.Data, at, end)
		}
	}
}

// trimEnd moves end in front of the line breaks before it.
func trimEnd(data []byte, from, end int) int {
	for end > from && (data[end-1] == '\n' || data[end-1] == '\r') {
		end--
	}
	return end
}

func indentOf(line []byte) int { return len(line) - len(bytes.TrimLeft(line, " -")) }

// offset is where a line and column (in characters, both from 1) are in the text.
func (f *File) offset(line, column int) (int, error) {
	at := 0
	for i := 1; i < line; i++ {
		n := bytes.IndexByte(f.Data[at:], '\n')
		if n < 0 {
			return 0, errors.New("its line is not found in the text")
		}
		at += n + 1
	}
	if line == 1 && bytes.HasPrefix(f.Data, []byte("\xef\xbb\xbf")) {
		at += 3
	}
	for i := 1; i < column; i++ {
		if at >= len(f.Data) {
			return 0, errors.New("its column is not found in the text")
		}
		_, size := utf8.DecodeRune(f.Data[at:])
		at += size
	}
	if at > len(f.Data) {
		return 0, errors.New("its place is not found in the text")
	}
	return at, nil
}
