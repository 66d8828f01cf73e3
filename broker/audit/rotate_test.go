package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

// small options make a new file every few entries.
func small(keep int) Options { return Options{Now: time.Now, MaxBytes: 2000, KeepFiles: keep} }

// fill opens a log, appends entries and closes it.
func fill(t *testing.T, path string, o Options, n int) {
	t.Helper()
	l, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := l.Append(t.Context(), Entry{Event: "x", Decision: Allow, Subject: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Files(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, filepath.Join(dir, e.Name()))
	}
	return out
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	fill(t, path, small(0), 60)
	fill(t, path, small(0), 60) // over a restart
	r, err := Verify(t.Context(), dir)
	if err != nil || len(r.Chains) != 1 || r.Chains[0].Last != 120 || r.Chains[0].First != 1 || r.Chains[0].Files < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, name := range names(t, dir) {
		if info, err := os.Stat(name); err != nil || info.Size() > 3000 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	l, err := Open(path, small(0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, since := range []uint64{0, 7, 50, 119, 120, 500} {
		entries, err := l.Since(t.Context(), since, 1000)
		if err != nil || uint64(len(entries)) != max(120, since)-since && since <= 120 {
			t.Errorf("since %d: %d entries, %v", since, len(entries), err)
		}
		for i, e := range entries {
			if e.Seq != since+uint64(i)+1 {
				t.Fatalf("since %d: entry %d has number %d", since, i, e.Seq)
			}
		}
	}
	early, err := l.Since(t.Context(), 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Holds(t.Context(), 3, early[0].Hash); err != nil {
		t.Error(err)
	}
	if err := l.Holds(t.Context(), 3, Genesis()); err == nil {
		t.Error("another hash is held")
	}
	if err := l.Holds(t.Context(), 500, Genesis()); err == nil {
		t.Error("an entry that was never there is held")
	}
	if _, err := Open(path, small(0)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second writer: %v", err)
	}
}

func TestKeepFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	fill(t, path, small(0), 5)
	l, err := Open(path, small(2))
	if err != nil {
		t.Fatal(err)
	}
	first, err := l.Since(t.Context(), 0, 1)
	if err != nil || len(first) != 1 {
		t.Fatal(first, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, path, small(2), 100)
	r, err := Verify(t.Context(), dir)
	if err != nil || r.Chains[0].First == 1 || r.Chains[0].Files > 3 || len(names(t, dir)) != 3 {
		t.Fatalf("%+v, %v, files %v", r, err, names(t, dir))
	}
	if l, err = Open(path, small(2)); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Holds(t.Context(), 1, first[0].Hash); err != nil {
		t.Errorf("an entry whose removal is recorded: %v", err)
	}
	entries, err := l.Since(t.Context(), 0, 1000)
	if err != nil || entries[0].Seq != r.Chains[0].First {
		t.Errorf("the first entry is %d, %v, want %d", entries[0].Seq, err, r.Chains[0].First)
	}
	// One more file goes, and nobody recorded it.
	if err := os.Remove(names(t, dir)[0]); err != nil {
		t.Fatal(err)
	}
	var f *Fault
	if _, err := Verify(t.Context(), dir); !errors.As(err, &f) || !strings.Contains(err.Error(), "no entry records") {
		t.Errorf("a file that somebody removed: %v", err)
	}
}

// TestVerifyFindsFaults damages a rotated log in every way that a chain shows, and names the line.
func TestVerifyFindsFaults(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	fill(t, path, small(0), 42)
	files := names(t, dir)
	second := files[1]
	whole, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for what, tc := range map[string]struct {
		text []byte
		says string
	}{
		"a changed word":         {bytes.Replace(whole, []byte("allow"), []byte("deny!"), 1), "000009.jsonl, line 1: "},
		"a changed line":         {bytes.Join([][]byte{lines[0], lines[1], bytes.Replace(lines[2], []byte("allow"), []byte("deny!"), 1)}, nil), ", line 3: entry "},
		"a removed line":         {bytes.Join(append([][]byte{lines[0]}, lines[2:]...), nil), ", line 2: "},
		"no first line":          {bytes.Join(lines[1:], nil), ", line 1: "},
		"no last line":           {bytes.Join(lines[:len(lines)-2], nil), "are missing before it"},
		"half of the last line":  {whole[:len(whole)-5], "has no end"},
		"an empty file":          {nil, "are missing"},
		"a line that never ends": {bytes.Repeat([]byte("x"), 3*maxLine), "line 1"},
	} {
		if err := os.WriteFile(second, tc.text, 0o600); err != nil {
			t.Fatal(err)
		}
		var f *Fault
		if _, err := Verify(t.Context(), dir); !errors.As(err, &f) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want a fault with %q", what, err, tc.says)
		}
	}
	if err := os.WriteFile(second, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	head := Anchor{r.Chains[0].Last, r.Chains[0].Head}
	for _, a := range []Anchor{head, {0, Genesis()}} {
		if r, err := Verify(t.Context(), dir, a); err != nil || r.Anchors != 1 {
			t.Errorf("anchor %+v: %v", a, err)
		}
	}
	if one, err := Verify(t.Context(), second); err != nil || one.Chains[0].First == 1 || one.Chains[0].Files != 1 {
		t.Errorf("one file: %+v, %v", one, err)
	}
	// The end is cut off: the chain does not show it, the anchor does.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), dir); err != nil {
		t.Errorf("a shorter chain: %v", err)
	}
	if _, err := Verify(t.Context(), dir, head); err == nil || !strings.Contains(err.Error(), "no log has entry") {
		t.Errorf("a cut tail: %v", err)
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, small(0)); err == nil || !strings.Contains(err.Error(), "does not follow") {
		t.Errorf("a log with a file missing in the middle opens: %v", err)
	}
}

func TestReplicas(t *testing.T) {
	dir := t.TempDir()
	for _, replica := range []string{"", "a", "b"} {
		name, err := FileName(replica)
		if err != nil {
			t.Fatal(err)
		}
		o := small(0)
		o.Replica = replica
		fill(t, filepath.Join(dir, name), o, 20)
	}
	r, err := Verify(t.Context(), dir)
	if err != nil || len(r.Chains) != 3 || r.Chains[0].Replica != "a" || r.Chains[2].Replica != "" || r.Chains[1].Last != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, name := range []string{"../x", "a.b", "-a", strings.Repeat("a", 64)} {
		if _, err := FileName(name); err == nil {
			t.Errorf("replica %q is taken", name)
		}
	}
	// A log that is copied over another's is noticed although each is unbroken.
	raw, err := os.ReadFile(filepath.Join(dir, "audit-a.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	for _, name := range []string{"audit-a.jsonl", "audit-b.jsonl"} {
		if err := os.WriteFile(filepath.Join(other, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(t.Context(), other); err == nil {
		t.Error("one log under two names is good")
	}
}

// TestCrashBetweenFiles opens what a crash leaves at each point of beginning a new file.
func TestCrashBetweenFiles(t *testing.T) {
	for what, damage := range map[string]func(t *testing.T, path string){
		"no current file":    func(t *testing.T, path string) {},
		"empty current file": func(t *testing.T, path string) { writeFile(t, path, nil) },
		"half a first line":  func(t *testing.T, path string) { writeFile(t, path, []byte(`{"seq":2`)) },
		"half a line in the full file, because no new one could be made": func(t *testing.T, path string) {
			f, err := os.OpenFile(fullName(path, 1), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(`{"seq":6,`); err != nil {
				t.Fatal(err)
			}
		},
	} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		fill(t, path, Options{Now: time.Now}, 5)
		if err := os.Rename(path, fullName(path, 1)); err != nil {
			t.Fatal(err)
		}
		damage(t, path)
		if r, err := Verify(t.Context(), filepath.Dir(path)); err != nil || r.Chains[0].Last != 5 {
			t.Errorf("%s: before the start %+v, %v", what, r, err)
		}
		fill(t, path, small(0), 1)
		if r, err := Verify(t.Context(), filepath.Dir(path)); err != nil || r.Chains[0].Last != 6 || r.Chains[0].Torn {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
}

func writeFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNoNewFile cannot begin a new file: entries are still written, and the reason is told.
func TestNoNewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, small(0))
	if err != nil {
		t.Fatal(err)
	}
	blocked := fullName(path, 1)
	writeFile(t, blocked, nil)
	for range 20 {
		if err := l.Append(t.Context(), Entry{Event: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Files(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the reason is %v", err)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Event: "x"}); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Files(); err != nil || n != 2 {
		t.Errorf("%d files, %v", n, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(t.Context(), filepath.Dir(path)); err != nil || r.Chains[0].Last != 21 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestWhileWriting verifies and reads a log that is being written and rotated, and whose old files go.
func TestWhileWriting(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(filepath.Join(dir, "audit.jsonl"), small(0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 60 {
				if err := l.Append(t.Context(), Entry{Event: "x"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		if _, err := Verify(t.Context(), dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		entries, err := l.Since(t.Context(), 0, 1000)
		if err != nil {
			t.Error(err)
		}
		for i, e := range entries {
			if e.Seq != uint64(i)+1 {
				t.Fatalf("entry %d has number %d", i, e.Seq)
			}
		}
	}
	wg.Wait()
	if r, err := Verify(t.Context(), dir); err != nil || r.Chains[0].Last != 240 {
		t.Errorf("%+v, %v", r, err)
	}
}

const childLog = "CLOISTER_TEST_AUDIT_LOG"

// TestChild is the writer of TestKilled: it names every acknowledged entry on standard output until it is killed.
func TestChild(t *testing.T) {
	path := os.Getenv(childLog)
	if path == "" {
		needs.Optional(t, "is started by TestKilled")
	}
	l, err := Open(path, small(0))
	if err != nil {
		t.Fatal(err)
	}
	var out sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				subject := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := l.Append(t.Context(), Entry{Event: "x", Subject: subject}); err != nil {
					t.Error(err)
					return
				}
				out.Lock()
				fmt.Printf("acknowledged %s\n", subject)
				out.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKilled kills a writer again and again. No entry that it was told to be written may be lost.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	acknowledged := map[string]bool{}
	for round := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
		cmd.Env = append(os.Environ(), childLog+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if s, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				acknowledged[s] = true
				if n++; n == 20+round {
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if _, err := Verify(t.Context(), dir); err != nil {
			t.Fatalf("after kill %d: %v", round, err)
		}
	}
	l, err := Open(path, small(0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	entries, err := l.Since(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Subject] = true
	}
	for s := range acknowledged {
		if !there[s] {
			t.Errorf("entry %s was acknowledged and is lost", s)
		}
	}
	if len(acknowledged) < 200 {
		t.Errorf("only %d entries were written", len(acknowledged))
	}
}

func TestConfigAndAnchors(t *testing.T) {
	for _, c := range []Config{{MaxMiB: -1}, {KeepFiles: -1}, {KeepFiles: 1}} {
		if c.Validate() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "1", "1:", "x:" + Genesis(), "1:" + strings.ToUpper(strings.Repeat("a", 64))} {
		if _, err := ParseAnchor(text); err == nil {
			t.Errorf("head %q is taken", text)
		}
	}
	if a, err := ParseAnchor("12:" + Genesis()); err != nil || a.Seq != 12 {
		t.Errorf("%+v, %v", a, err)
	}
}
