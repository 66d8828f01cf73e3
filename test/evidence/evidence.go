// Package evidence finds the recorded evidence of real hardware that verifiers are tested with.
//
// The recordings are not part of the repository. They are looked for in ../shared/testdata/evidence beside the repository; without them
// the tests that need them are skipped and say so. The test that judges a whole folder case by case takes any folder of that form.
package evidence

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// Named is the folder that CLOISTER_EVIDENCE names, or else that of the recordings.
func Named(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("CLOISTER_EVIDENCE"); dir != "" {
		return dir
	}
	return Dir(t)
}

// Dir is the folder of the recordings.
func Dir(t testing.TB) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; root != "/"; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
	}
	dir := filepath.Join(filepath.Dir(root), "shared", "testdata", "evidence")
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		needs.Optional(t, "no recorded evidence beside the repository (../shared/testdata/evidence), which is not part of it")
	}
	return dir
}

// Read returns one file of the recordings.
func Read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(Dir(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Cases returns the cases of a platform, decoded into T: the members of cases.json that the test wants.
func Cases[T any](t testing.TB, platform string) []T {
	t.Helper()
	var raw []json.RawMessage
	if err := json.Unmarshal(Read(t, "cases.json"), &raw); err != nil {
		t.Fatal(err)
	}
	var out []T
	for _, r := range raw {
		var p struct{ Platform string }
		if err := json.Unmarshal(r, &p); err != nil {
			t.Fatal(err)
		}
		if p.Platform != platform {
			continue
		}
		var c T
		if err := json.Unmarshal(r, &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		t.Fatalf("cases.json has no case of platform %q", platform)
	}
	return out
}
