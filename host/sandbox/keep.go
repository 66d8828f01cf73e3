package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/internal/paths"
)

// What is kept of a sandbox that failed to start, beside its trace and under its id.
const (
	keptConsole = ".console.log"
	keptReason  = ".failure.txt"
	// keptBytes is how much of each, the end.
	keptBytes = 1 << 20
	// keptFailed is of how many sandboxes.
	keptFailed = 16
	// monitorLines is how much of what the monitor printed.
	monitorLines = 100
)

// endTrace writes out what is left, and keeps the trace of a sandbox that failed to start.
func (s *Sandbox) endTrace(ctx context.Context) {
	if err := s.keepFailed(); err != nil {
		s.log.Warn("a sandbox failed", "sandbox", s.cfg.ID, "error", err)
	}
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	if err := s.trace.Close(ctx); err != nil {
		s.log.Debug("closing the trace", "sandbox", s.cfg.ID, "error", err)
	}
	if s.failure != nil {
		if err := trace.Keep(filepath.Join(s.dir, trace.FileName), s.tracesDir(), s.cfg.ID, keptTraces); err != nil {
			s.log.Debug("keeping the trace of a sandbox that failed", "sandbox", s.cfg.ID, "error", err)
		}
	}
}

// traceTimeout is how long the end of a sandbox waits for a collector of traces: containerd gives the deletion ten seconds in all.
const traceTimeout = 2 * time.Second

// keptTraces is how many traces of failed sandboxes a node keeps.
const keptTraces = 16

// tracesDir is where traces of sandboxes go that are no more.
func (s *Sandbox) tracesDir() string { return filepath.Join(filepath.Dir(s.cfg.Root), "traces") }

// failed notes why the sandbox did not start, while the monitor's messages can still be had.
func (s *Sandbox) failed(err error) {
	s.failure = err
	if m, ok := s.vm.(interface{ Messages(n int) []string }); ok {
		s.failureLines = m.Messages(monitorLines)
	}
}

// keepFailed keeps what tells why the sandbox failed to start; its own directory goes. Files of the oldest sandboxes go, too.
func (s *Sandbox) keepFailed() error {
	if s.failure == nil || !s.runtime.Debug.KeepFailed {
		return nil
	}
	dir := s.tracesDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping what a failed sandbox left: %w", err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n%v\n", time.Now().UTC().Format(time.RFC3339), s.failure)
	if len(s.failureLines) > 0 {
		fmt.Fprintf(&text, "\nmessages of the virtual machine monitor:\n  %s\n", strings.Join(s.failureLines, "\n  "))
	}
	base := filepath.Join(dir, s.cfg.ID)
	console, err := tail(filepath.Join(s.dir, consoleFile), keptBytes)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // it did not come to that
	}
	if len(console) > 0 {
		err = paths.WriteFile(base+keptConsole, console, 0o600)
	}
	reason := []byte(text.String())
	err = errors.Join(err, paths.WriteFile(base+keptReason, reason[:min(len(reason), keptBytes)], 0o600), prune(dir))
	if err != nil {
		return fmt.Errorf("keeping what a failed sandbox left: %w", err)
	}
	return nil
}

// tail is the end of a file. The guest writes the console, without escape sequences it can be printed.
func tail(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if over := info.Size() - most; over > 0 {
		if _, err := f.Seek(over, io.SeekStart); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	return bytes.ReplaceAll(b, []byte{0x1b}, []byte("?")), err
}

// prune leaves the files of the last keptFailed sandboxes.
func prune(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type kept struct {
		id string
		at time.Time
	}
	var all []kept
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), keptReason); ok {
			if info, err := e.Info(); err == nil {
				all = append(all, kept{id, info.ModTime()})
			}
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return b.at.Compare(a.at) })
	for _, k := range all[min(len(all), keptFailed):] {
		for _, suffix := range []string{keptConsole, keptReason} { // the reason last: it is what is looked for here
			if err := os.Remove(filepath.Join(dir, k.id+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
