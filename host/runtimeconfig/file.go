package runtimeconfig

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Bounds of what is read.
const (
	maxFile    = 1 << 20
	maxDropIns = 64
	maxDepth   = 8
)

// leaf is one key of a file that has a value.
type leaf struct {
	path  []string
	value any
	src   Source
}

func (l leaf) name() string { return strings.Join(l.path, ".") }

// readTree reads a file and the drop-ins beside it, in the order in which they count.
func readTree(file string) (leaves []leaf, files []string, err error) {
	leaves, err = readOne(file, KindFile)
	if err != nil {
		return nil, nil, err
	}
	files = []string{file}
	dir := filepath.Join(filepath.Dir(file), "config.d")
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("reading drop-ins: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".toml") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if len(files) > maxDropIns {
			return nil, nil, fmt.Errorf("reading drop-ins: %s has more than %d", dir, maxDropIns)
		}
		name := filepath.Join(dir, e.Name())
		more, err := readOne(name, KindDropIn)
		if err != nil {
			return nil, nil, err
		}
		leaves, files = append(leaves, more...), append(files, name)
	}
	return leaves, files, nil
}

func readOne(file, kind string) ([]leaf, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the runtime's configuration: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() { // a pipe would be waited for
		return nil, fmt.Errorf("reading the runtime's configuration: %s is not a regular file", file)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the runtime's configuration: %w", err)
	}
	return parse(raw, file, kind)
}

// parse reads TOML into its keys. Values are those of the decoder, which also finds keys that are there twice; positions are those of
// the parser below it.
func parse(raw []byte, file, kind string) ([]leaf, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("reading the runtime's configuration: %s has more than %d bytes", file, maxFile)
	}
	var all map[string]any
	if err := toml.Unmarshal(raw, &all); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, col := at.Position()
			return nil, fmt.Errorf("the runtime's configuration: %s:%d:%d: %w", file, line, col, err)
		}
		return nil, fmt.Errorf("the runtime's configuration: %s: %w", file, err)
	}
	w := walker{file: file, kind: kind, values: all, seen: map[string]bool{}}
	for i, c := range raw {
		if c == '\n' {
			w.ends = append(w.ends, i)
		}
	}
	w.parser.Reset(raw)
	var table []string
	for w.parser.NextExpression() {
		e := w.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, _ = w.key(e)
		case unstable.KeyValue:
			if err := w.keyValue(table, e); err != nil {
				return nil, err
			}
		}
	}
	if err := w.parser.Error(); err != nil { // the decoder has seen it first
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return w.leaves, nil
}

type walker struct {
	parser     unstable.Parser
	file, kind string
	values     map[string]any
	seen       map[string]bool
	leaves     []leaf
	ends       []int // of lines: the parser would count them again for each key
}

// key is the dotted key of an expression and its line.
func (w *walker) key(n *unstable.Node) (path []string, line int) {
	for it := n.Key(); it.Next(); {
		part := it.Node()
		if line == 0 {
			line = sort.SearchInts(w.ends, int(part.Raw.Offset)) + 1
		}
		path = append(path, string(part.Data))
	}
	return path, line
}

func (w *walker) keyValue(table []string, n *unstable.Node) error {
	key, line := w.key(n)
	path := append(slices.Clone(table), key...)
	if len(path) > maxDepth {
		return fmt.Errorf("%s:%d: key %s is nested deeper than %d", w.file, line, show(strings.Join(path, ".")), maxDepth)
	}
	if v := n.Value(); v.Kind == unstable.InlineTable && v.Child() != nil {
		for it := v.Children(); it.Next(); {
			if c := it.Node(); c.Kind == unstable.KeyValue {
				if err := w.keyValue(path, c); err != nil {
					return err
				}
			}
		}
		return nil
	}
	l := leaf{path: path, value: find(w.values, path), src: Source{Kind: w.kind, File: w.file, Line: line}}
	if name := strings.Join(path, "\x00"); !w.seen[name] { // tables of an array have the same keys again
		w.seen[name] = true
		w.leaves = append(w.leaves, l)
	}
	return nil
}

// find is the value at a path; tables in arrays are not followed, because no setting is in one.
func find(v any, path []string) any {
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}
