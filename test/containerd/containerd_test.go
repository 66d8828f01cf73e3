package containerd

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestHarness runs a container on each version by runc, through a restart and a kill of containerd, and finds it gone afterwards.
func TestHarness(t *testing.T) {
	for _, version := range Versions(t, V16, V2) {
		t.Run(version, func(t *testing.T) {
			d := Start(t, Options{Version: version, Runtimes: []Runtime{{Handler: "other", Type: "io.containerd.runc.v2"}}})
			d.Import(Pause(t), Busybox(t, "registry.cloister.test/busybox:1"))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			ctr := func(args ...string) string {
				t.Helper()
				out, err := d.Ctr(ctx, "", args...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if out := ctr("run", "--rm", "registry.cloister.test/busybox:1", "harness-short", "echo", "hello"); out != "hello\n" {
				t.Errorf("the container said %q", out)
			}
			ctr("run", "-d", "registry.cloister.test/busybox:1", "harness-long", "sleep", "1000")
			if len(d.LeftOf("harness-long")) == 0 {
				t.Error("a running container is not seen")
			}
			d.Restart()
			d.Kill()
			d.Restart()
			if out := ctr("tasks", "ls"); !strings.Contains(out, "RUNNING") {
				t.Errorf("after restarts the task is not there: %s", out)
			}
			ctr("tasks", "rm", "-f", "harness-long")
			ctr("containers", "rm", "harness-long")
			d.Gone(t, time.Minute, "harness-long")
		})
	}
}
