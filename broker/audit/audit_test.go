package audit

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func logOf(t *testing.T, n int) (string, []byte) {
	t.Helper()
	path := t.TempDir() + "/audit.jsonl"
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := l.Append(t.Context(), Entry{Event: "x", Decision: Allow, Reason: "because\n\xff<&>"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, raw
}

func TestChainTellsEdits(t *testing.T) {
	_, raw := logOf(t, 4)
	lines := bytes.SplitAfter(raw, []byte("\n"))
	join := func(idx ...int) []byte {
		var out []byte
		for _, i := range idx {
			out = append(out, lines[i]...)
		}
		return out
	}
	if n, _, err := verifyAll(bytes.NewReader(raw)); err != nil || n != 4 {
		t.Fatalf("a good log: %d entries, %v", n, err)
	}
	for name, tc := range map[string]struct {
		text []byte
		says string
	}{
		"changed word":  {bytes.Replace(raw, []byte("allow"), []byte("deny!"), 1), "entry 1 was changed"},
		"line removed":  {join(0, 2, 3), "entry 2 has number 3"},
		"lines swapped": {join(0, 2, 1, 3), "entry 2 has number 3"},
		"first removed": {join(1, 2, 3), "entry 1 has number 2"},
		"repeated":      {join(0, 0, 1), "entry 2 has number 1"},
		"added member":  {bytes.Replace(raw, []byte(`{"seq":1,`), []byte(`{"seq":1,"x":1,`), 1), "entry 1 was changed"},
		"not JSON":      {append(join(0), "noise\n"...), "entry 2"},
		"half a line":   {raw[:len(raw)-3], "entry 4 has no end"},
	} {
		if _, _, err := verifyAll(bytes.NewReader(tc.text)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.says)
		}
	}
}

func TestReopen(t *testing.T) {
	path, raw := logOf(t, 3)
	// A crash in the middle of a line: the half line goes, the rest stays.
	if err := os.WriteFile(path, append(raw, `{"seq":4,"ti`...), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Event: "after", Decision: Deny}); err != nil {
		t.Fatal(err)
	}
	entries, err := l.Since(t.Context(), 2, 10)
	if err != nil || len(entries) != 2 || entries[1].Event != "after" || entries[1].Seq != 4 {
		t.Errorf("entries since 2: %+v, %v", entries, err)
	}
	if one, err := l.Since(t.Context(), 0, 1); err != nil || len(one) != 1 || one[0].Seq != 1 {
		t.Errorf("one entry: %+v, %v", one, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Event: "late"}); err == nil {
		t.Error("a closed log takes entries")
	}
	// Damage that no crash leaves is not repaired.
	if err := os.WriteFile(path, bytes.Replace(raw, []byte("allow"), []byte("deny!"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Now: time.Now}); err == nil || !strings.Contains(err.Error(), "entry 1 was changed") {
		t.Errorf("edited log opens: %v", err)
	}
}

func TestLongReasonIsCut(t *testing.T) {
	path := t.TempDir() + "/audit.jsonl"
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Event: "x", Reason: strings.Repeat("ü", maxReason)}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Now: time.Now}); err != nil {
		t.Errorf("the log does not verify: %v", err)
	}
}

// TestSinceReadsFromMarks reads pages across the places where reading can begin.
func TestSinceReadsFromMarks(t *testing.T) {
	path, _ := logOf(t, 2*markEvery+5)
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for _, since := range []uint64{0, markEvery - 1, markEvery, markEvery + 1, 2*markEvery + 4} {
		entries, err := l.Since(t.Context(), since, 3)
		if err != nil || len(entries) == 0 || entries[0].Seq != since+1 {
			t.Errorf("since %d: %d entries, %v", since, len(entries), err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{\"seq\":1}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _, _ = verifyAll(bytes.NewReader(text))
	})
}

// verifyAll checks a chain that begins with entry 1 and returns how many entries it has and the last hash.
func verifyAll(r io.Reader) (uint64, string, error) {
	n, last := uint64(0), Genesis()
	_, err := verify(r, mark{prev: last}, func(e Entry, _ int64) error { n, last = e.Seq, e.Hash; return nil })
	return n, last, err
}
