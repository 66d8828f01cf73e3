package dryrun

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/refstore"
)

// ReadValues reads reference values: an object of names and values, as `cloister refvalue compute` makes it, also inside of its
// --json; or the list that `cloister refvalue list --json` prints, of which what has ended by now does not count. It returns
// the names of those that have ended.
func ReadValues(raw []byte, now time.Time) (values appraise.Values, ended []string, err error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '[' {
		var records []refstore.Record
		if err := json.Unmarshal(raw, &records); err != nil {
			return nil, nil, fmt.Errorf("reading a list of reference values: %w", err)
		}
		values, ended = Records(records, now)
		return values, ended, nil
	}
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, nil, fmt.Errorf("reading reference values: %w", err)
	}
	if inner, boots := values["values"], values["boots"]; inner != nil && boots != nil && len(values) == 2 {
		values = nil
		if err := json.Unmarshal(inner, &values); err != nil {
			return nil, nil, fmt.Errorf("reading the member values: %w", err)
		}
	}
	for name, v := range values {
		if string(v) == "null" {
			return nil, nil, fmt.Errorf("reference value %q is null, which no broker takes", name)
		}
	}
	return values, nil, nil
}

// Records are the values of a broker's records, and the names of those that have ended.
func Records(records []refstore.Record, now time.Time) (values appraise.Values, ended []string) {
	values = appraise.Values{}
	for _, r := range records {
		if now.Before(r.Expiration) {
			values[r.Name] = r.Value
		} else {
			ended = append(ended, r.Name)
		}
	}
	return values, ended
}
