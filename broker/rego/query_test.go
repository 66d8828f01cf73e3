package rego

import (
	"encoding/json"
	"reflect"
	"sync"
	"testing"
)

const queryPolicy = `package policy
import rego.v1
default hardware := 97
hardware := 2 if {
	input.sample
	input.sample.svn in data.svns
	input.sample.debug == false
}`

func explainHardware(t *testing.T, p *Policy, svn string) []Finding {
	t.Helper()
	e, err := p.Begin(Document{
		Input: map[string]any{"sample": map[string]any{"svn": svn, "debug": true}}, Data: map[string]any{"svns": []any{"1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	v, ok, err := e.Eval(t.Context(), "hardware")
	if err != nil || !ok || v != json.Number("97") {
		t.Fatalf("hardware is %v, %v, %v, want 97", v, ok, err)
	}
	found, err := e.Explain(t.Context(), "hardware")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Queries that are remembered answer about the document at hand, from many goroutines at once.
func TestQueriesAreRemembered(t *testing.T) {
	p, err := Compile("p", queryPolicy)
	if err != nil {
		t.Fatal(err)
	}
	old, good := explainHardware(t, p, "0"), explainHardware(t, p, "1")
	if len(old) != 2 || old[0].Claim != "sample.svn" || string(old[0].Got) != `"0"` || len(good) != 1 || good[0].Claim != "sample.debug" {
		t.Fatalf("findings are %v and %v, want svn and debug, and debug alone", old, good)
	}
	known := len(p.queries.seen)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if again := explainHardware(t, p, "0"); !reflect.DeepEqual(again, old) {
					t.Errorf("findings are %v, were %v", again, old)
				}
			}
		})
	}
	wg.Wait()
	if len(p.queries.seen) != known {
		t.Errorf("%d queries are remembered, were %d: nothing new was asked", len(p.queries.seen), known)
	}
}
