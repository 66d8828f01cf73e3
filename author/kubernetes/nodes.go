package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// lineOf is the line of a path below n as join makes it, or of the last part of it that is there.
func lineOf(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" && n != nil {
		var key string
		index := -1
		switch end := strings.IndexAny(path[1:], ".["); {
		case strings.HasPrefix(path, `["`):
			quoted, err := strconv.QuotedPrefix(path[1:])
			if err != nil {
				return line
			}
			key, _ = strconv.Unquote(quoted)
			path = strings.TrimPrefix(path[1+len(quoted):], "]")
		case path[0] == '[':
			number, rest, _ := strings.Cut(path[1:], "]")
			i, err := strconv.Atoi(number)
			if err != nil {
				return line
			}
			index, path = i, rest
		case end < 0:
			key, path = path, ""
		default:
			key, path = path[:1+end], path[1+end:]
		}
		path = strings.TrimPrefix(path, ".")
		n = resolve(n)
		switch {
		case index < 0:
			p := own(n, key)
			if p.key == nil {
				return line
			}
			n, line = p.value, p.key.Line
		case n != nil && n.Kind == yaml.SequenceNode && index < len(n.Content):
			n = n.Content[index]
			line = n.Line
		default:
			return line
		}
	}
	return line
}

// Digest is the SHA-256 of what stands there, in hexadecimal. Comments, the order of members, the form and the place do not count.
func (a At) Digest() (string, error) {
	count := 0
	value, err := expand(a.Node, &count, 0)
	if err != nil {
		return "", fmt.Errorf("line %d: %w", a.Line(), err)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("line %d: %w", a.Line(), err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// MarshalJSON keeps a text apart from the number that it is written like.
func (s scalar) MarshalJSON() ([]byte, error) { return json.Marshal([2]string{s.tag, s.value}) }

// findPod looks for a pod spec in an object of an unknown kind: a list of mappings called containers, each with an image.
func findPod(n *yaml.Node, path string, depth int) string {
	if depth > 20 || n == nil {
		return ""
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i].Value, n.Content[i+1]
			if k == "containers" && v.Kind == yaml.SequenceNode && len(v.Content) > 0 && child(v.Content[0], "image") != nil &&
				child(v.Content[0], "image").Kind == yaml.ScalarNode {
				return join(path, k)
			}
			if at := findPod(v, join(path, k), depth+1); at != "" {
				return at
			}
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			if at := findPod(v, fmt.Sprintf("%s[%d]", path, i), depth+1); at != "" {
				return at
			}
		}
	}
	return ""
}

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for hops := 0; n != nil && n.Kind == yaml.AliasNode && hops < maxDepth; hops++ {
		n = n.Alias
	}
	return n
}

// child is a member of a mapping, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n = resolve(n); n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

func text(n *yaml.Node, key string) string {
	if c := child(n, key); c != nil && c.Kind == yaml.ScalarNode && !isNull(c) {
		return c.Value
	}
	return ""
}

func name(n *yaml.Node) string {
	m := child(n, "metadata")
	if x := text(m, "name"); x != "" {
		return x
	}
	return text(m, "generateName")
}
