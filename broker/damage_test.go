package broker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMissingFiles: a broker whose audit log or storage key has gone does not go on as if nothing had been.
func TestMissingFiles(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(dir string) error
		says   string
	}{
		{"audit log deleted", func(dir string) error { return os.Remove(filepath.Join(dir, AuditFile)) }, "deleted or cut off"},
		{"audit log cut off", func(dir string) error { return os.Truncate(filepath.Join(dir, AuditFile), 0) }, "deleted or cut off"},
		{"storage key deleted", func(dir string) error { return os.Remove(filepath.Join(dir, StoreKeyFile)) }, "is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			cfg := w.b.cfg
			w.stop()
			w.must(tc.damage(cfg.DataDir))
			b, err := Open(t.Context(), cfg, Options{Log: w.b.log})
			if err == nil {
				b.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("the broker starts with error %v, want one that says %q", err, tc.says)
			}
			if _, err := os.Stat(filepath.Join(cfg.DataDir, StoreKeyFile)); tc.name == "storage key deleted" && err == nil {
				t.Error("a new storage key was made")
			}
		})
	}
}
