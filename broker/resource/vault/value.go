package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/cloister/cloister/broker/resource"
)

// toValue is how a secret is written: text as a string, which people can read in Vault, other bytes as an array of
// numbers, as upstream writes all of them. Upstream reads both.
func toValue(secret []byte) any {
	if utf8.Valid(secret) {
		return string(secret)
	}
	numbers := make([]uint16, len(secret)) // []byte would become base64
	for i, b := range secret {
		numbers[i] = uint16(b)
	}
	return numbers
}

// fromValue reads a secret as upstream does: a string is its bytes, an array is bytes, anything else is its JSON with
// members in order. Errors quote nothing.
func fromValue(raw json.RawMessage) ([]byte, error) {
	if raw == nil {
		return nil, errors.New(`the entry has no member "data"`)
	}
	var out []byte
	switch raw[0] {
	case '"':
		var text string
		if json.Unmarshal(raw, &text) != nil {
			return nil, errors.New(`its member "data" is not a JSON string`)
		}
		out = []byte(text)
	case '[':
		if json.Unmarshal(raw, &out) != nil {
			return nil, errors.New(`its member "data" is an array of something else than numbers from 0 to 255`)
		}
	default:
		var err error
		if out, err = canonical(raw); err != nil {
			return nil, err
		}
	}
	if len(out) > resource.MaxSize {
		return nil, fmt.Errorf("the secret has %d bytes, at most %d are served", len(out), resource.MaxSize)
	}
	return out, nil
}

func canonical(raw json.RawMessage) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var value any
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if d.Decode(&value) != nil || e.Encode(value) != nil {
		return nil, errors.New(`its member "data" is not JSON`)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}
