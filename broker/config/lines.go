package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// faultKey is the key that the text of a fault begins with: "server.listen is …", "[attestation.coco_as] has …".
var faultKey = regexp.MustCompile(`\A\[?([a-z0-9_-]+(?:\.[a-z0-9_-]+)*)`)

// located says of each fault in which line of raw its key is, or the table that the key would be in. What the file does
// not speak of (a default that does not fit) stays without a line. err is what Validate returns, a joined error.
func located(raw []byte, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	where := lines(raw)
	var all []error
	for _, fault := range joined.Unwrap() {
		key := ""
		if m := faultKey.FindStringSubmatch(fault.Error()); m != nil {
			key = m[1]
		}
		for ; key != "" && where[key] == 0; key = key[:max(strings.LastIndexByte(key, '.'), 0)] {
		}
		if key != "" {
			fault = fmt.Errorf("line %d: %w", where[key], fault)
		}
		all = append(all, fault)
	}
	return errors.Join(all...)
}

// lines tells where the keys and tables of a document are: dotted names to lines, from 1.
func lines(raw []byte) map[string]int {
	where := map[string]int{}
	var p unstable.Parser
	p.Reset(raw)
	table, line, counted := "", 1, 0
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.KeyValue && e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue
		}
		var parts []string
		for keys := e.Key(); keys.Next(); {
			if begin := int(keys.Node().Raw.Offset); len(parts) == 0 && begin > counted {
				line += bytes.Count(raw[counted:begin], []byte{'\n'})
				counted = begin
			}
			parts = append(parts, string(keys.Node().Data))
		}
		name := strings.Join(parts, ".")
		switch {
		case e.Kind != unstable.KeyValue:
			table = name
		case table != "":
			name = table + "." + name
		}
		if where[name] == 0 {
			where[name] = line
		}
	}
	return where
}
