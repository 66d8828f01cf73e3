package needs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// recorder takes the end of a test instead of ending this one.
type recorder struct {
	testing.TB
	failed, skipped string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed = fmt.Sprintf(f, args...)
	runtime.Goexit()
}
func (r *recorder) Skipf(f string, args ...any) {
	r.skipped = fmt.Sprintf(f, args...)
	runtime.Goexit()
}

// record runs what a test would, with CI set to a value.
func record(t *testing.T, ci string, f func(testing.TB)) *recorder {
	t.Helper()
	t.Setenv("CI", ci)
	r, done := &recorder{TB: t}, make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestMissing(t *testing.T) {
	for name, c := range map[string]struct {
		f    func(testing.TB)
		want string
	}{
		"program":     {func(t testing.TB) { Programs(t, "sh", "no-such-program") }, `"no-such-program": executable file not found`},
		"file":        {func(t testing.TB) { Files(t, "/", "/no/such/file") }, "/no/such/file: no such file"},
		"file system": {func(t testing.TB) { FileSystem(t, "nosuchfs") }, "nosuchfs in this kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ci := range []string{"", "false", "1"} {
				if r := record(t, ci, c.f); r.failed != "" || !strings.Contains(r.skipped, c.want) {
					t.Errorf("CI=%s: failed %q, skipped %q, want %q", ci, r.failed, r.skipped, c.want)
				}
			}
			if r := record(t, "true", c.f); r.skipped != "" || !strings.Contains(r.failed, c.want) {
				t.Errorf("CI=true: failed %q, skipped %q, want %q", r.failed, r.skipped, c.want)
			}
		})
	}
	optional := func(t testing.TB) { Optional(t, "no %s", "tail") }
	if r := record(t, "true", optional); r.failed != "" || r.skipped != "no tail" {
		t.Errorf("failed %q, skipped %q", r.failed, r.skipped)
	}
	there := func(t testing.TB) {
		if path := Program(t, "sh"); !filepath.IsAbs(path) {
			t.Errorf("sh is %q", path)
		}
		Files(t, "/dev/null")
		FileSystem(t, "proc")
	}
	if r := record(t, "true", there); r.failed != "" || r.skipped != "" {
		t.Errorf("failed %q, skipped %q", r.failed, r.skipped)
	}
}

// TestNobodyElseSkips: a test that skips by itself would do so in CI, too, without anybody's knowledge.
func TestNobodyElseSkips(t *testing.T) {
	skips := regexp.MustCompile(`\b\w+\.Skip(f|Now)?\(`)
	seen := 0
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || path == "internal/needs" || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		seen++
		if !strings.Contains(string(text), `"testing"`) {
			return nil
		}
		for i, line := range strings.Split(string(text), "\n") {
			if skips.MatchString(line) {
				t.Errorf("%s:%d: %s\nuse needs.Missing, which fails in CI, or needs.Optional with a reason", path, i+1, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 1000 {
		t.Errorf("only %d Go files were seen", seen)
	}
}
