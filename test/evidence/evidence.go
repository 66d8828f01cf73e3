// Package evidence finds the recorded evidence of real hardware that verifiers are tested with.
//
// The recordings are not part of the repository. They are looked for in the folder that CLOISTER_EVIDENCE names, else in
// ../shared/testdata/evidence beside the repository; without them the tests that need them are skipped and say so.
package evidence

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Dir is the folder of the recordings.
func Dir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("CLOISTER_EVIDENCE"); dir != "" {
		return dir
	}
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
		t.Skip("no recorded evidence: set CLOISTER_EVIDENCE to its folder")
	}
	return dir
}

// elsewhere tells whether the folder is one of the caller's own, which need not have every recording of the shared one. What is
// there is judged case by case by package broker/judge.
func elsewhere() bool { return os.Getenv("CLOISTER_EVIDENCE") != "" }

// Read returns one file of the recordings.
func Read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(Dir(t), name))
	if errors.Is(err, fs.ErrNotExist) && elsewhere() && name != "cases.json" {
		t.Skipf("the folder of CLOISTER_EVIDENCE has no %s, which this test is about", name)
	}
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
	if len(out) == 0 && elsewhere() {
		t.Skipf("the folder of CLOISTER_EVIDENCE has no case of platform %q", platform)
	}
	if len(out) == 0 {
		t.Fatalf("cases.json has no case of platform %q", platform)
	}
	return out
}
