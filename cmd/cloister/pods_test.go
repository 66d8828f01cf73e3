package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/host/pod"
	"github.com/cloister/cloister/internal/paths"
)

func TestGrace(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	for _, tc := range []struct {
		flag     time.Duration
		manifest *int64
		want     time.Duration
	}{
		{0, nil, 0}, {0, seconds(45), 45 * time.Second}, {time.Minute, seconds(45), time.Minute}, {0, seconds(0), 1},
	} {
		if got := graceOf(tc.flag, tc.manifest); got != tc.want {
			t.Errorf("flag %s with a manifest of %v: %s, want %s", tc.flag, tc.manifest, got, tc.want)
		}
	}
	// Without the flag, stopping leaves the pod its own grace period: zero would be SIGKILL right after SIGTERM.
	if got := stopCmd(&app{}).Flag("grace").DefValue; got != "-1s" {
		t.Errorf("the grace period of `cloister stop` is %s by default, want -1s", got)
	}
}

func TestTimesHaveATotal(t *testing.T) {
	var out bytes.Buffer
	at := time.Now()
	(&app{stdout: &out}).printTimes([]pod.Event{
		{Step: "vm-start", Time: at, Took: time.Second},
		{Step: "exit", Container: "a", Time: at.Add(3 * time.Second), Took: 2 * time.Second},
		{Step: "exit", Container: "b", Time: at.Add(2 * time.Second), Took: 2 * time.Second},
	})
	if text := strings.Join(strings.Fields(out.String()), " "); !strings.HasSuffix(text, "exit b 2.00s total 4.00s") {
		t.Errorf("times: %s", out.String())
	}
}

// TestNameClash runs a pod whose name another one has.
func TestNameClash(t *testing.T) {
	f := newFolder(t)
	f.write(t, "pod.yaml", strings.NewReplacer("ENV", "", "ARGS", "x").Replace(secretPod))
	f.run(t, exitDone, "initdata", "new", "-o", "pod.toml", "--insecure-registry", f.registry, "pod.yaml")
	dirs, err := paths.Default()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(dirs.Run, "web")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := paths.TryLock(filepath.Join(dir, "lock")) // as its supervisor does
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	f.write(t, filepath.Join(dir, "state.json"), `{"name": "web", "phase": "Running"}`)
	out := f.run(t, exitRefused, "run", "--initdata", "pod.toml", "--insecure-registry", f.registry, "pod.yaml")
	if !strings.Contains(out, pod.ErrRunning.Error()) || !strings.Contains(out, "hint: `cloister stop web`") || strings.Contains(out, "accelerator") {
		t.Errorf("output: %s", out)
	}
}
