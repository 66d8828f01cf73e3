package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloister/cloister/host/pod"
	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/internal/paths"
)

// TestTraceOfRun makes the trace of a pod of `cloister run` out of its events and its guest's log.
func TestTraceOfRun(t *testing.T) {
	t.Setenv("CLOISTER_HOME", t.TempDir())
	dirs, err := paths.Default()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dirs.Run) }) // it lies outside of the home
	logs := filepath.Join(dirs.Pods(), "web")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	state, err := json.Marshal(pod.State{
		Name: "web", Namespace: "default", Phase: pod.Succeeded, TEE: "tpm", Accel: "tcg", LogDir: logs, Started: began,
		Events: []pod.Event{
			{Step: pod.StepVMStart, Time: at(500), Took: 400 * time.Millisecond},
			{Step: pod.StepGuestReady, Time: at(9500), Took: 9 * time.Second},
			{Step: pod.StepCreate, Container: "app", Time: at(9900), Took: 300 * time.Millisecond, Error: "denied\x1b[2J"},
			{Step: pod.StepRunning, Time: at(9900)},
			{Step: pod.StepExit, Container: "app", Time: at(3600_000), Took: time.Hour},
			{Step: pod.StepGone, Time: at(3601_000), Took: time.Second},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	log := `{"ts":"2001-01-01T00:00:01.3Z","msg":"boot step done","step":"network","took":100000000}
{"ts":"2001-01-01T00:00:01.5Z","msg":"guest ready","kernel":3000000000,"took":1000000000}
`
	for name, text := range map[string]string{"state.json": string(state), pod.GuestLog: log} {
		if err := os.WriteFile(filepath.Join(logs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"trace", "--state", t.TempDir(), "default/web"}, nil, &out, &errs); code != exitDone {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	golden := filepath.Join("testdata", "trace-run.golden")
	if os.Getenv("CLOISTER_UPDATE") != "" {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if code := run(t.Context(), []string{"trace", "--json", "--state", t.TempDir(), "web"}, nil, &out, &errs); code != exitDone {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	var tr trace.Trace
	if err := json.Unmarshal(out.Bytes(), &tr); err != nil || len(tr.Steps) != 7 || !tr.Steps[2].Claimed {
		t.Errorf("%v\n%s", err, out.String())
	}
	if code := run(t.Context(), []string{"trace", "--state", t.TempDir(), "other/web"}, nil, &out, &errs); code != exitRefused {
		t.Errorf("another namespace: exit code %d", code)
	}
}
