package refstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

const maxDepth = 16

// parsed is a value that was checked.
type parsed struct {
	raw json.RawMessage
	// list tells that the value is an array; items are its distinct elements, else the value itself.
	list  bool
	items []item
}

// item is an element in the form it came, and in the one form that equal elements share.
type item struct {
	raw json.RawMessage
	key string
}

// parseValue checks a value. Null is refused, at any depth: a claim that is missing must not equal it.
func parseValue(raw json.RawMessage) (*parsed, error) {
	if len(raw) > maxValue {
		return nil, fmt.Errorf("it has %d bytes, at most %d are taken", len(raw), maxValue)
	}
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	p := &parsed{raw: bytes.Clone(bytes.TrimSpace(raw))}
	if p.raw[0] != '[' {
		it, err := newItem(p.raw)
		p.items = []item{it}
		return p, err
	}
	p.list = true
	var elements []json.RawMessage
	if err := json.Unmarshal(p.raw, &elements); err != nil {
		return nil, err
	}
	if len(elements) > maxElements {
		return nil, fmt.Errorf("it has %d elements, at most %d are taken", len(elements), maxElements)
	}
	seen := make(map[string]bool, len(elements))
	for _, e := range elements {
		it, err := newItem(e)
		if err != nil {
			return nil, err
		}
		if !seen[it.key] {
			seen[it.key] = true
			p.items = append(p.items, it)
		}
	}
	return p, nil
}

func newItem(raw json.RawMessage) (item, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return item{}, err
	}
	key, err := json.Marshal(v) // members in order, no white space
	return item{raw: raw, key: string(key)}, err
}

// checkJSON walks through a value for what a policy could read in two ways.
func checkJSON(raw json.RawMessage) error {
	if !json.Valid(raw) || !utf8.Valid(raw) {
		return errors.New("it is not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	type level struct {
		object, value bool // value: the next token of an object is one
		names         map[string]bool
	}
	var open []level
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is not JSON: %w", err)
		}
		if n := len(open); n > 0 && open[n-1].object && !open[n-1].value {
			if name, ok := token.(string); ok {
				if open[n-1].names[name] {
					return fmt.Errorf("it has the member %.128q twice", name)
				}
				open[n-1].names[name], open[n-1].value = true, true
				continue
			}
		}
		switch token {
		case nil:
			return errors.New("it has a null in it, which a missing claim would equal")
		case json.Delim('{'), json.Delim('['):
			if len(open) == maxDepth {
				return fmt.Errorf("it has more than %d levels", maxDepth)
			}
			open = append(open, level{object: token == json.Delim('{'), names: map[string]bool{}})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if n := len(open); n > 0 {
			open[n-1].value = false
		}
	}
}
