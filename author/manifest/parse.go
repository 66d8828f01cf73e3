package manifest

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Source is one YAML file.
type Source struct {
	Name string // for messages
	Data []byte
}

// Parse reads one pod and the objects it needs from one or more files. The error
// is an *Error with all problems.
func Parse(sources ...Source) (*Manifest, error) {
	m := &Manifest{ConfigMaps: map[string]*ConfigMap{}, Secrets: map[string]*Secret{}}
	ps := &problems{}
	podFile := ""
	for _, src := range sources {
		if len(src.Data) > maxFileBytes {
			ps.add(src.Name, 0, "", "the file has %d bytes, the limit is %d", len(src.Data), maxFileBytes)
			continue
		}
		for _, n := range documents(src, ps) {
			if m.addDocument(src.Name, n, ps) {
				podFile = src.Name
			}
		}
	}
	if m.Pod == nil {
		if len(ps.list) == 0 {
			name := ""
			if len(sources) > 0 {
				name = sources[0].Name
			}
			ps.add(name, 0, "", "there is no document of kind Pod")
		}
		return nil, ps.err()
	}
	c := checker{file: podFile, manifest: m, problems: ps}
	c.pod()
	if err := ps.err(); err != nil {
		return nil, err
	}
	slices.Sort(m.Warnings)
	m.Warnings = slices.Compact(m.Warnings)
	return m, nil
}

// documents splits a file. A syntax error ends it.
func documents(src Source, ps *problems) []*yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(src.Data))
	var out []*yaml.Node
	for {
		n, err := nextDocument(dec)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			ps.add(src.Name, 0, "", "%v", err)
			return out
		}
		if len(out) == maxDocuments {
			ps.add(src.Name, n.Line, "", "more than %d documents", maxDocuments)
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

// addDocument decodes one document by its kind; it reports whether it was the pod.
func (m *Manifest) addDocument(file string, n *yaml.Node, ps *problems) bool {
	kind, version := field(n, "kind"), field(n, "apiVersion")
	decode := func(v any) positions {
		d := decoder{file: file, problems: ps, lines: positions{}, warn: func(s string) { m.Warnings = append(m.Warnings, s) }}
		d.decode(n, "", reflect.ValueOf(v).Elem(), 0)
		return d.lines
	}
	if version != "v1" && (kind == "Pod" || kind == "ConfigMap" || kind == "Secret") {
		ps.add(file, n.Line, "apiVersion", "got %q, expected v1", version)
	}
	switch kind {
	case "Pod":
		p := &Pod{}
		p.pos = decode(p)
		if m.Pod != nil {
			ps.add(file, n.Line, "", "a second Pod; one run starts one pod")
			return false
		}
		m.Pod = p
		return true
	case "ConfigMap":
		c := &ConfigMap{}
		lines := decode(c)
		if _, ok := m.ConfigMaps[c.Metadata.Name]; ok || c.Metadata.Name == "" {
			ps.add(file, n.Line, "metadata.name", "ConfigMap %q has no name or is given twice", c.Metadata.Name)
		}
		m.ConfigMaps[c.Metadata.Name] = c
		decodeBinary(c.BinaryData, c.Data, "binaryData", file, lines, ps)
	case "Secret":
		s := &Secret{}
		lines := decode(s)
		if _, ok := m.Secrets[s.Metadata.Name]; ok || s.Metadata.Name == "" {
			ps.add(file, n.Line, "metadata.name", "Secret %q has no name or is given twice", s.Metadata.Name)
		}
		m.Secrets[s.Metadata.Name] = s
		decodeBinary(s.Data, nil, "data", file, lines, ps)
	case "":
		ps.add(file, n.Line, "kind", "missing; expected Pod, ConfigMap or Secret")
	default:
		ps.add(file, n.Line, "kind", "%q is not supported; expected Pod, ConfigMap or Secret", kind)
	}
	return false
}

// decodeBinary replaces base64 values by what they encode.
func decodeBinary(values, other map[string]string, name, file string, lines positions, ps *problems) {
	for k, v := range values {
		path := join(name, k)
		raw, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			ps.add(file, lines[path], path, "not base64") // the value stays out of the message
			continue
		}
		if _, ok := other[k]; ok {
			ps.add(file, lines[path], path, "the key is also in data")
		}
		values[k] = string(raw)
	}
}

func field(n *yaml.Node, key string) string {
	if n.Kind != yaml.MappingNode {
		return ""
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
		}
	}
	return ""
}

// configMap returns all keys of a ConfigMap.
func (m *Manifest) configMap(name string) (map[string]string, bool) {
	c, ok := m.ConfigMaps[name]
	if !ok {
		return nil, false
	}
	return merged(c.Data, c.BinaryData), true
}

// secret returns all keys of a Secret; stringData wins as in Kubernetes.
func (m *Manifest) secret(name string) (map[string]string, bool) {
	s, ok := m.Secrets[name]
	if !ok {
		return nil, false
	}
	return merged(s.Data, s.StringData), true
}

func merged(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

// printable reports whether s can be an environment variable.
func printable(s string) bool {
	return utf8.ValidString(s) && !bytes.ContainsRune([]byte(s), 0)
}
