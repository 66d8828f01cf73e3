package store

import (
	"strings"
	"sync"
	"testing"
)

// TestOnePanics has changes panic beside others, which must neither be lost nor wait for ever.
func TestOnePanics(t *testing.T) {
	b, err := Open(t.TempDir() + "/s.db")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			key := string(rune('a' + i))
			err := b.update(t.Context(), KBS, func(s space) error {
				if _, err := s.put(key, []byte("v"), 0); err != nil {
					return err
				}
				if i%8 == 0 {
					panic("at the disco")
				}
				return nil
			})
			if i%8 == 0 && (err == nil || !strings.Contains(err.Error(), "panic")) || i%8 != 0 && err != nil {
				t.Errorf("change %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	u, err := b.Usage(t.Context(), KBS)
	if err != nil || u.Entries != 28 {
		t.Errorf("%d entries, %v, want 28: those of changes that panicked are taken back", u.Entries, err)
	}
}
