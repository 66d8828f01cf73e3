// Package zones keeps the trust boundaries: which folder may import which.
package zones

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

const module = "github.com/cloister/cloister"

// allowed names, for every zone, the zones it may import. Production code only: tests that need two zones live in test/.
var allowed = map[string][]string{
	"author":   {"author", "tee", "wire", "layer", "internal"},
	"host":     {"host", "tee", "wire", "layer", "internal"},
	"guest":    {"guest", "tee", "wire", "layer", "internal"},
	"broker":   {"broker", "tee", "wire", "internal"},
	"cluster":  {"cluster", "tee", "wire", "internal"},
	"tee":      {"tee", "wire", "internal"},
	"wire":     {"wire", "internal"},
	"layer":    {"layer", "wire", "internal"},
	"internal": {"internal"},
}

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Standard     bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports,Standard"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// zone is the first folder of a package of this module, or "" for any other package.
func zone(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

// TestZonesDoNotImportEachOther enforces STYLE.md section 1 on production code and on tests.
func TestZonesDoNotImportEachOther(t *testing.T) {
	seen := 0
	for _, p := range list(t, "./...") {
		from := zone(p.ImportPath)
		ok, restricted := allowed[from]
		if !restricted {
			continue
		}
		seen++
		may := map[string]bool{}
		for _, z := range ok {
			may[z] = true
		}
		check := func(imports []string, alsoTest bool) {
			for _, imp := range imports {
				to := zone(imp)
				if to == "" || may[to] || alsoTest && to == "test" {
					continue
				}
				t.Errorf("%s imports %s: zone %q may import only %v", p.ImportPath, imp, from, ok)
			}
		}
		check(p.Imports, false)
		check(p.TestImports, true)
		check(p.XTestImports, true)
	}
	if seen < 10 {
		t.Fatalf("only %d packages were checked, the walk is broken", seen)
	}
}

// TestGuestDependencies compares what is linked into the guest with the reviewed list: every import there is TCB.
// CLOISTER_UPDATE=1 rewrites the list; the diff is then reviewed.
func TestGuestDependencies(t *testing.T) {
	var got []string
	for _, p := range list(t, "-deps", "./cmd/cloister-guest") {
		if !p.Standard {
			got = append(got, p.ImportPath)
		}
	}
	sort.Strings(got)
	text := "# Every package outside the standard library that is linked into cloister-guest.\n" +
		"# Each line is trusted computing base. Update with: CLOISTER_UPDATE=1 go test ./internal/zones\n" +
		strings.Join(got, "\n") + "\n"
	file := filepath.Join("../../cmd/cloister-guest", "dependencies.txt")
	if os.Getenv("CLOISTER_UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text {
		t.Errorf("the guest's dependencies changed:\n%s\nhint: review the change, then run CLOISTER_UPDATE=1 go test ./internal/zones", diff(string(want), text))
	}
	for _, banned := range []string{"google.golang.org/grpc.", "os/exec", "net/http/pprof", "github.com/spf13/cobra"} {
		for _, p := range got {
			if p == strings.TrimSuffix(banned, ".") {
				t.Errorf("the guest links %s, which is banned there", p)
			}
		}
	}
}

func diff(want, got string) string {
	count := map[string]int{}
	for _, l := range strings.Split(want, "\n") {
		count[l]--
	}
	for _, l := range strings.Split(got, "\n") {
		count[l]++
	}
	var out []string
	for l, n := range count {
		if n > 0 {
			out = append(out, "+ "+l)
		} else if n < 0 {
			out = append(out, "- "+l)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
