package sandbox

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
)

// TestShareLost kills virtiofsd, and in another sandbox the monitor first.
func TestShareLost(t *testing.T) {
	needs.Root(t, "mounts")
	if _, err := share.Find(""); err != nil {
		needs.Missing(t, "%v", err)
	}
	for _, first := range []string{"virtiofsd", "monitor"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		sh, err := share.Start(ctx, share.Config{Dir: filepath.Join(t.TempDir(), "share")})
		if err != nil {
			t.Fatal(err)
		}
		defer sh.Close(context.Background())
		m, err := fakeguest.StartMachine(&fakeguest.Guest{})
		if err != nil {
			t.Fatal(err)
		}
		s := &Sandbox{share: sh, vm: m, log: slog.New(slog.DiscardHandler), background: ctx}
		s.workers.Go(s.watchShare)
		if first == "monitor" {
			m.Kill()
		}
		if err := unix.Kill(sh.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case <-m.Exited():
		case <-ctx.Done():
			t.Fatal("the virtual machine runs on without its files")
		}
		s.workers.Wait()
		s.mu.Lock()
		dead := s.dead
		s.mu.Unlock()
		if first == "monitor" && dead != nil || first == "virtiofsd" && (dead == nil || !strings.Contains(dead.Error(), "virtiofsd")) {
			t.Errorf("%s ended first: %v", first, dead)
		}
	}
}
