package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cloister/cloister/broker/store"
)

// TestWritesTogether has many write at once, some of them what cannot be written. Each gets its own answer, and what was
// acknowledged is there after the file was closed and opened.
func TestWritesTogether(t *testing.T) {
	const writers, each = 16, 20
	path := t.TempDir() + "/s.db"
	b, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var won [each]int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := b.Put(t.Context(), store.KBS, map[string][]byte{fmt.Sprintf("own-%d-%d", w, i): []byte("v")}); err != nil {
					t.Error(err)
				}
				// All want to be the first; one is.
				_, err := b.Create(t.Context(), store.KBS, fmt.Sprintf("shared-%d", i), []byte{byte(w)}, 0, store.Limit{})
				if err == nil {
					mu.Lock()
					won[i]++
					mu.Unlock()
				} else if !errors.Is(err, store.ErrExists) {
					t.Error(err)
				}
				if err := b.Put(t.Context(), "no such namespace", map[string][]byte{"k": nil}); err == nil {
					t.Error("a namespace that is not there was written to")
				}
			}
		})
	}
	wg.Wait()
	for i, n := range won {
		if n != 1 {
			t.Errorf("shared-%d was created %d times", i, n)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = store.Open(path); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	u, err := b.Usage(t.Context(), store.KBS)
	if err != nil || u.Entries != writers*each+each {
		t.Errorf("%d entries, %v, want %d", u.Entries, err, writers*each+each)
	}
}
