package snapshotter

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLeftDirectory: a directory that could not be removed once, and whose number a later snapshot got, is not taken for rubbish.
func TestLeftDirectory(t *testing.T) {
	s := open(t, t.TempDir(), newContent(), asIs)
	dir := s.dir("1") // of the first snapshot, if one before it was never recorded
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.left[dir] = true
	s.mu.Unlock()
	if _, err := s.Prepare(t.Context(), "container", ""); err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(dir, upperDir, "written")
	if err := os.WriteFile(written, []byte("kept"), 0o600); err != nil {
		t.Fatal(err) // the number is another one: this test has to learn which
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(written); err != nil {
		t.Errorf("the clean-up has removed what a container wrote: %v", err)
	}
}
