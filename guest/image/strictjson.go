package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxJSONDepth bounds the nesting of JSON from outside.
const maxJSONDepth = 32

// decodeJSON reads one JSON document. Members that appear twice (also if they differ only in case, which
// encoding/json treats as the same) are refused: two readers could otherwise see two different documents.
// Free-form maps, such as labels, may have members that differ in case.
// With strict set, members that v does not know are refused too.
func decodeJSON(data []byte, v any, strict bool) error {
	if err := checkMembers(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if strict {
		dec.DisallowUnknownFields()
	}
	return dec.Decode(v)
}

func checkMembers(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := checkValue(dec, "", 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON document")
	}
	return nil
}

func checkValue(dec *json.Decoder, parent string, depth int) error {
	if depth > maxJSONDepth {
		return fmt.Errorf("JSON is nested deeper than %d levels", maxJSONDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	freeForm := parent == "labels" || parent == "annotations" || parent == "auths" || parent == "docker"
	for dec.More() {
		name := parent
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name = strings.ToLower(strings.ToUpper(key.(string)))
			id := name
			if freeForm {
				id = key.(string)
			}
			if seen[id] {
				return fmt.Errorf("JSON member %q appears twice", truncate(key.(string), 80))
			}
			seen[id] = true
		}
		if err := checkValue(dec, name, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing delimiter
	return err
}
