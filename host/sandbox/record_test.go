package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/fakeguest"
)

// TestRecordRequests: what a guest is asked to do is written down when it is asked for, and kept of the last sandboxes. A record that
// cannot be made does not keep a pod from running.
func TestRecordRequests(t *testing.T) {
	s, _, err := start(t, guest(&fakeguest.Guest{}), "debug.record_requests = false\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Dir(), recordFile)); err == nil {
		t.Error("there is a record that nobody has asked for")
	}
	var records string
	s, root, err := start(t, guest(&fakeguest.Guest{}), "debug.record_requests = true\n", func(c *Config) {
		records = filepath.Join(filepath.Dir(c.Root), "requests")
		for i := range keptRecords + 3 { // of earlier ones
			name := filepath.Join(records, fmt.Sprint("old", i, ".jsonl"))
			at := time.Now().Add(-time.Duration(i+1) * time.Hour)
			if err := os.MkdirAll(records, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, at, at); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(records, "pod.jsonl")
	raw, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"kind":"CreateSandboxRequest","request":{`, `{"kind":"DestroySandboxRequest","request":{}}`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("the record lacks %s:\n%s", want, raw)
		}
	}
	if info, err := os.Stat(kept); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if all, _ := filepath.Glob(filepath.Join(records, "*")); len(all) != keptRecords {
		t.Errorf("%d records are kept, want %d", len(all), keptRecords)
	}
	gone(t, Config{Root: filepath.Join(root, "n")})
	var log bytes.Buffer
	s, _, err = start(t, guest(&fakeguest.Guest{}), "debug.record_requests = true\n", func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		records = filepath.Join(filepath.Dir(c.Root), "requests")
		if err := os.WriteFile(records, nil, 0o600); err != nil { // in the way of the directory
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "the record of a sandbox is lost"); n != 1 {
		t.Errorf("it was said %d times: %s", n, log.String())
	}
}
