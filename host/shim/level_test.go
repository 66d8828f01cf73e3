package shim

import (
	"log/slog"
	"testing"
)

// TestLevel: the configuration's level counts, and that of containerd without one.
func TestLevel(t *testing.T) {
	for text, want := range map[string]slog.Level{
		"error": slog.LevelError, "warn": slog.LevelWarn, "debug": slog.LevelDebug,
		"info": slog.LevelDebug - 1, // as it was
	} {
		t.Run(text, func(t *testing.T) {
			e := newEnv(t, `logging.level = "`+text+`"`)
			level := &slog.LevelVar{}
			level.Set(slog.LevelDebug - 1)
			e.service.cfg.Level = level
			if err := e.create("pod"); err != nil {
				t.Fatal(err)
			}
			if level.Level() != want {
				t.Errorf("level %v, want %v", level.Level(), want)
			}
		})
	}
}
