package cri

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ctrScenario is containers without pods, by containerd's own command.
func ctrScenario(t *testing.T, w *world) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	try := func(args ...string) (string, error) { return w.Daemon.Ctr(ctx, "", args...) }
	ctr := func(args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	events := newExpect(t)
	watch := w.Daemon.Command(ctx, "", "events")
	watch.Stdout = events
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}()

	run := w.Daemon.Command(ctx, "", "run", "--rm", "--runtime", w.runtime, BusyboxImage, "ctr-once", "sh", "-c", "echo to stdout; echo to stderr >&2; exit 42")
	var out, errs bytes.Buffer
	run.Stdout, run.Stderr = &out, &errs
	err := run.Run()
	if code := exitCode(err); code != 42 || out.String() != "to stdout\n" || !strings.Contains(errs.String(), "to stderr\n") {
		t.Errorf("ctr run: %d, stdout %q, stderr %q", code, out.String(), errs.String())
	}

	ctr("run", "-d", "--runtime", w.runtime, "--memory-limit", "134217728", BusyboxImage, "ctr-main", "sh", "-c", Sleeper)
	if got := ctr("tasks", "ls"); !strings.Contains(got, "ctr-main") || !strings.Contains(got, "RUNNING") {
		t.Errorf("tasks: %s", got)
	}
	if got := ctr("tasks", "exec", "--exec-id", "e1", "ctr-main", "echo", "from exec"); got != "from exec\n" {
		t.Errorf("tasks exec: %q", got)
	}
	if _, err := try("tasks", "exec", "--exec-id", "e2", "ctr-main", "sh", "-c", "exit 9"); exitCode(err) != 9 {
		t.Errorf("tasks exec with exit code 9: %v", err)
	}
	in := w.Daemon.Command(ctx, "", "tasks", "exec", "--exec-id", "e3", "ctr-main", "sh", "-c", "read line; echo got $line")
	in.Stdin = strings.NewReader("typed\n")
	if got, err := in.Output(); string(got) != "got typed\n" {
		t.Errorf("tasks exec with stdin: %q, %v", got, err)
	}
	if got := ctr("tasks", "ps", "ctr-main"); len(strings.Split(strings.TrimSpace(got), "\n")) < 2 {
		t.Errorf("tasks ps: %q", got)
	}
	ctr("tasks", "pause", "ctr-main")
	if got := ctr("tasks", "ls"); !strings.Contains(got, "PAUSED") {
		t.Errorf("a paused task: %s", got)
	}
	ctr("tasks", "resume", "ctr-main")
	if got := ctr("tasks", "exec", "--exec-id", "e4", "ctr-main", "echo", "again"); got != "again\n" {
		t.Errorf("exec after a pause: %q", got)
	}
	if got := ctr("tasks", "metrics", "ctr-main"); !strings.Contains(got, "memory.usage") && !strings.Contains(got, "memory.usage_in_bytes") {
		t.Errorf("tasks metrics: %s", got)
	}
	ctr("tasks", "kill", "-s", "TERM", "ctr-main")
	wait(t, exitTimeout, "the task is stopped", func() bool { return strings.Contains(ctr("tasks", "ls"), "STOPPED") })
	ctr("tasks", "rm", "ctr-main")
	ctr("containers", "rm", "ctr-main")

	ctr("run", "-d", "--runtime", w.runtime, BusyboxImage, "ctr-attached", "sh", "-c", "while :; do echo tick; sleep 0.2; done")
	attach := w.Daemon.Command(ctx, "", "tasks", "attach", "ctr-attached")
	ticks := newExpect(t)
	attach.Stdout = ticks
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	ticks.wait("tick\ntick\n")
	ctr("tasks", "kill", "-s", "KILL", "ctr-attached")
	if err := attach.Wait(); exitCode(err) != 137 {
		t.Errorf("attach to a task that is killed ended with %v", err)
	}
	_, _ = try("tasks", "rm", "ctr-attached") // attach does it in some versions
	ctr("containers", "rm", "ctr-attached")

	for _, topic := range []string{"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"} {
		events.wait(topic)
	}
	w.Daemon.Gone(t, goneTimeout, "ctr-once", "ctr-main", "ctr-attached")
}

// exitCode is that of a program that ended with an error.
func exitCode(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0
	}
	return exit.ExitCode()
}
