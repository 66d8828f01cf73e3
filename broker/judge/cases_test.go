package judge_test

import (
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/test/evidence"
)

// TestCases judges every case of the folder that CLOISTER_EVIDENCE names, or the shared one.
func TestCases(t *testing.T) {
	results, err := judge.Cases(t.Context(), filepath.Join(evidence.Named(t), "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		t.Run(r.ID, func(t *testing.T) {
			if !r.Match {
				t.Error(r.Line())
			}
			t.Log(r.Line())
		})
	}
}
