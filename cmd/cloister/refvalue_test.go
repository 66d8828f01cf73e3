package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/refstore"
)

// TestDiffValues compares with values that were approved half a year ago.
func TestDiffValues(t *testing.T) {
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	until := now.AddDate(0, 6, 0)
	element := func(text string, until time.Time) refstore.Element {
		return refstore.Element{Value: json.RawMessage(text), Approvals: []refstore.Approval{{Expiration: until, By: "admin"}}}
	}
	records := []refstore.Record{
		{Name: "a", Value: json.RawMessage(`["1","2"]`), Expiration: until, Elements: []refstore.Element{element(`"1"`, until), element(`"2"`, now.Add(time.Hour))}},
		{Name: "s", Value: json.RawMessage(`1`), Expiration: until, Elements: []refstore.Element{element(`1`, until)}},
		{Name: "gone", Value: json.RawMessage(`["1"]`), Expiration: now.Add(-time.Hour), Elements: []refstore.Element{element(`"1"`, now.Add(-time.Hour))}},
	}
	for name, tc := range map[string]struct {
		values                           string
		replace                          bool
		added, removed, changed, expires int
	}{
		"renewed":      {`{"a":["1"]}`, false, 0, 0, 1, 1},
		"new":          {`{"a":["3"],"b":["1"]}`, false, 2, 0, 0, 1},
		"replaced":     {`{"a":["1"]}`, true, 0, 1, 1, 0},
		"other single": {`{"s":2}`, true, 0, 0, 1, 1},
		"had ended":    {`{"gone":["1"]}`, false, 1, 0, 0, 1},
	} {
		var values map[string]any
		if err := json.Unmarshal([]byte(tc.values), &values); err != nil {
			t.Fatal(err)
		}
		d, err := diffValues(t.Context(), records, values, addFlags{replace: tc.replace}, now, 24*time.Hour)
		if err != nil || len(d.Added) != tc.added || len(d.Removed) != tc.removed || len(d.Changed) != tc.changed || len(d.Expires) != tc.expires {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if _, err := diffValues(t.Context(), records, map[string]any{"s": []any{1}}, addFlags{}, now, 0); err == nil {
		t.Error("a list is added to what is no list")
	}
}
