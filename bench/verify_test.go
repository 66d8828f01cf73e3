package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/cloister/cloister/test/evidence"
)

// TestProofs: all that is timed verifies, with and without recordings.
func TestProofs(t *testing.T) {
	list, err := made(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	last, err := tpmProof()
	if err != nil {
		t.Fatal(err)
	}
	check(t, append(list, last), 3)
	t.Run("recorded", func(t *testing.T) {
		list, err := recorded(evidence.Dir(t))
		if err != nil {
			t.Fatal(err)
		}
		check(t, list, 3)
	})
	if _, err := recorded(filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Error("recordings that are not there are read")
	}
}

func check(t *testing.T, list []proof, want int) {
	t.Helper()
	if len(list) != want {
		t.Errorf("%d proofs, want %d", len(list), want)
	}
	for _, p := range list {
		if took, err := timed(t.Context(), p); err != nil || took <= 0 {
			t.Errorf("%s took %s, %v", p.name, took, err)
		}
	}
}
