package kubernetes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Input is one text with manifests.
type Input struct {
	Name string // for messages
	Path string // where it was read from; empty for standard input
	Data []byte
}

// Read reads files, all .yaml, .yml and .json files of directories (without those below), and stdin for "-" unless it is nil.
func Read(stdin io.Reader, names ...string) ([]Input, error) {
	var out []Input
	for _, name := range names {
		if name == "-" && stdin != nil {
			data, err := io.ReadAll(io.LimitReader(stdin, maxFileBytes+1))
			if err != nil {
				return nil, fmt.Errorf("reading standard input: %w", err)
			}
			out = append(out, Input{Name: "<stdin>", Data: data})
			continue
		}
		files, err := filesOf(name)
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
		for _, file := range files {
			data, err := readFile(file)
			if err != nil {
				return nil, fmt.Errorf("reading manifests: %w", err)
			}
			out = append(out, Input{Name: file, Path: file, Data: data})
		}
	}
	return out, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

func filesOf(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, err
	}
	for _, k := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		if _, err := os.Stat(filepath.Join(name, k)); err == nil {
			return nil, fmt.Errorf("%s holds parts that kustomize puts together\nhint: kustomize build %s, and give what it prints by -", name, name)
		}
	}
	if _, err := os.Stat(filepath.Join(name, "Chart.yaml")); err == nil {
		return nil, fmt.Errorf("%s holds templates of a chart\nhint: helm template %s, and give what it prints by -", name, name)
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".yaml", ".yml", ".json"}, ext) && e.Type()&fs.ModeDir == 0 {
			out = append(out, filepath.Join(name, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no .yaml, .yml or .json file", name)
	}
	return out, nil
}

// documents splits a text. A syntax error ends it.
func documents(in Input, problems *Problems) []*yaml.Node {
	fail := func(line int, format string, args ...any) {
		*problems = append(*problems, problem(in.Name, line, "", "", format, args...))
	}
	if len(in.Data) > maxFileBytes {
		fail(0, "the file has more than %d bytes", maxFileBytes)
		return nil
	}
	text := &lines{rest: in.Data}
	dec := yaml.NewDecoder(text)
	var out []*yaml.Node
	for {
		n, err := nextDocument(dec)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			line, message := syntaxError(err, in.Data, text.given)
			fail(line, "%s", message)
			return out
		}
		if len(out) == maxDocuments {
			fail(0, "more than %d documents", maxDocuments)
			return out
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 && !isNull(n.Content[0]) {
			out = append(out, n.Content[0])
		}
	}
}

// nextDocument turns a panic of the YAML reader into an error: the text is foreign.
func nextDocument(dec *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading YAML: %v", r)
		}
	}()
	n = &yaml.Node{}
	return n, dec.Decode(n)
}
