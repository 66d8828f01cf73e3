// Package headerfile reads files of HTTP headers, such as the token that a collector of traces wants.
package headerfile

import (
	"bytes"
	"fmt"
	"net/textproto"
	"strings"
)

// Limit is the most bytes of a file.
const Limit = 64 << 10

// Parse reads lines "Name: value"; empty lines and those that begin with # are left out. Errors do not repeat what stands in the file: it
// holds a secret.
func Parse(text []byte) (map[string]string, error) {
	if len(text) > Limit {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(text), Limit)
	}
	headers := map[string]string{}
	for n, line := range bytes.Split(text, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(string(line), ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("line %d is not \"Name: value\"", n+1)
		}
		headers[textproto.CanonicalMIMEHeaderKey(name)] = strings.TrimSpace(value)
	}
	return headers, nil
}
