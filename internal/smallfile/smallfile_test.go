package smallfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if raw, err := Read(file, 5); err != nil || string(raw) != "12345" {
		t.Errorf("%q, %v", raw, err)
	}
	if _, err := Read(file, 4); err == nil || !strings.Contains(err.Error(), "more than 4 bytes") {
		t.Errorf("too long: %v", err)
	}
	for _, name := range []string{file + "x", filepath.Dir(file)} {
		if _, err := Read(name, 5); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

func TestRoots(t *testing.T) {
	if p, err := Roots(); p != nil || err != nil {
		t.Errorf("no files: %v, %v", p, err)
	}
	file := filepath.Join(t.TempDir(), "f")
	for says, text := range map[string][]byte{"no PEM certificate": []byte("noise"), "more than": bytes.Repeat([]byte("\n"), maxRoots+1)} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Roots(file); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
