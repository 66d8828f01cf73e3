package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestTogether appends from many goroutines: every acknowledged entry is in one unbroken chain.
func TestTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 25 {
				if err := l.Append(t.Context(), Entry{Event: "test", Decision: Allow, Subject: fmt.Sprintf("%d-%d", i, j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, last, err := verifyAll(bytes.NewReader(raw))
	if seq, head := l.Head(); err != nil || n != 1000 || seq != 1000 || head != last {
		t.Errorf("%d entries, head %d, %v; want 1000 in an unbroken chain", n, seq, err)
	}
	seen := map[string]bool{}
	entries, err := l.Since(t.Context(), 0, 2000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		seen[e.Subject] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d different entries, want 1000", len(seen))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// After the file has gone away nobody is told that an entry is written.
	for range 3 {
		if err := l.Append(t.Context(), Entry{Event: "late"}); err == nil {
			t.Error("an entry is acknowledged that cannot be on disk")
		}
	}
}

// TestQueue: entries that nobody waits for keep their place before those that somebody does.
func TestQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxQueued {
		if err := l.Queue(t.Context(), Entry{Event: "auth", RequestID: strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(t.Context(), Entry{Event: "resource-read"}); err != nil {
		t.Fatal(err)
	}
	if seq, _ := l.Head(); seq != 3*maxQueued+1 {
		t.Errorf("%d entries are on disk after one that was waited for, want all %d", seq, 3*maxQueued+1)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), path); err != nil {
		t.Error(err)
	}
}

// TestQueueAlone: an entry that nobody waits for gets to the disk without another one, by its time or when the log is closed.
func TestQueueAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Queue(t.Context(), Entry{Event: "auth"}); err != nil {
		t.Fatal(err)
	}
	for seq := uint64(0); seq == 0; seq, _ = l.Head() {
		select {
		case <-t.Context().Done():
			t.Fatal("the entry does not get to the disk")
		case <-time.After(time.Millisecond):
		}
	}
	if err := l.Queue(t.Context(), Entry{Event: "auth"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Event: "auth"}); err == nil {
		t.Error("a closed log takes an entry")
	}
	if err := l.Queue(t.Context(), Entry{Event: "auth"}); err == nil {
		t.Error("a closed log takes an entry that nobody waits for")
	}
	r, err := Open(path, Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if seq, _ := r.Head(); seq != 2 {
		t.Errorf("%d entries are on disk, want 2", seq)
	}
}
