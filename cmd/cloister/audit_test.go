package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/audit"
)

// TestAuditVerify runs the command over rotated logs, good and damaged.
func TestAuditVerify(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l, err := audit.Open(path, audit.Options{Now: time.Now, MaxBytes: 2000})
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := l.Append(t.Context(), audit.Entry{Event: "x", Decision: audit.Allow}); err != nil {
			t.Fatal(err)
		}
	}
	seq, hash := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	head := fmt.Sprintf("%d:%s", seq, hash)
	verify := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"audit", "verify"}, args...), strings.NewReader(""), &out, &errs)
		return code, out.String() + errs.String()
	}
	check := func(want int, says string, args ...string) {
		t.Helper()
		if code, text := verify(args...); code != want || !strings.Contains(text, says) {
			t.Errorf("%v: exit code %d with %s, want %d with %q", args, code, text, want, says)
		}
	}
	check(exitDone, head, dir)
	check(exitDone, `"last": 30`, "--json", path)
	check(exitDone, "", "--head", head, dir)
	check(exitRefused, "in none of the logs", "--head", "31:"+hash, dir)
	check(exitUsage, "want the number of an entry", "--head", hash, dir)
	check(exitUsage, "--broker")
	check(exitUsage, "--broker", "--broker", dir)
	check(exitRefused, "no such file", filepath.Join(dir, "none"))
	full := filepath.Join(dir, "audit.000000000001.jsonl")
	text, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, bytes.Replace(text, []byte("allow"), []byte("deny!"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	check(exitRefused, "audit.000000000001.jsonl, line 1: entry 1 was changed", dir)
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[2J\u202eb \"c\"\n"); got != `a\x1b[2J\u202eb "c"` {
		t.Errorf("got %s", got)
	}
}
