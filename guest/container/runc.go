package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloister/cloister/guest/reap"
)

// runtimeEnv is all the runtime gets from the guest's environment.
var runtimeEnv = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

// runc calls the container runtime.
type runc struct {
	reaper *reap.Reaper
	path   string // of the program
	root   string // of its state
}

// call runs one runtime command. Its own diagnosis goes to a log file, because its standard error may be the
// container's.
func (r *runc) call(ctx context.Context, dir string, files []*os.File, args ...string) error {
	logFile := filepath.Join(dir, "runc.log")
	if err := os.Remove(logFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clearing the runtime's log: %w", err)
	}
	args = append([]string{"--root", r.root, "--log", logFile, "--log-format", "json"}, args...)
	_, err := r.reaper.Run(ctx, reap.Cmd{Path: r.path, Args: args, Env: runtimeEnv, Dir: "/", Files: files})
	if err == nil {
		return nil
	}
	if reason := lastLogError(logFile); reason != "" {
		return fmt.Errorf("container runtime: %s", reason)
	}
	return fmt.Errorf("container runtime: %w", err)
}

// lastLogError returns the message of the last error in a runtime log.
func lastLogError(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	var reason string
	for line := range bytes.Lines(text) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			reason = entry.Msg
		}
	}
	return strings.TrimSpace(reason)
}

// launch runs a runtime command that leaves a process behind and returns that process.
func (r *runc) launch(ctx context.Context, dir string, files []*os.File, pidFile string, args ...string) (*reap.Process, error) {
	// The process may end before its pid is read, so collecting starts first.
	statuses := r.reaper.Collect()
	defer statuses.Close()
	if err := r.call(ctx, dir, files, args...); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("reading the process id: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("reading the process id: %w", err)
	}
	return statuses.Watch(pid)
}

// writeJSON writes a file for the runtime.
func writeJSON(file string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", filepath.Base(file), err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(file), err)
	}
	return nil
}
