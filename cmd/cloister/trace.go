package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/pod"
	"github.com/cloister/cloister/host/trace"
	"github.com/cloister/cloister/internal/paths"
)

// runtimeState is where the container runtime keeps its sandboxes, and traces of those that failed.
const runtimeState = "/run/cloister"

func traceCmd(a *app) *cobra.Command {
	var root string
	c := &cobra.Command{
		Use:   "trace POD",
		Short: "Print how a pod came up, step by step",
		Long: "Prints a waterfall of the steps by which a pod came up, of pods that the container runtime runs on this node and of those\n" +
			"of `cloister run`. POD is a name, NAMESPACE/NAME, or the beginning of the sandbox's id. Among several the newest that fits\n" +
			"is printed. Times that the guest says about itself are marked: the host cannot check them.",
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			t, err := findTrace(root, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(t)
			}
			return t.Print(a.stdout)
		},
	}
	c.Flags().StringVar(&root, "state", runtimeState, "folder with the state of the container runtime")
	return c
}

// errNoTrace is wrapped by the error about a pod of which there are no times.
var errNoTrace = errors.New("there is no trace of it")

// findTrace looks among the sandboxes of the container runtime, those of them that failed, and the pods of `cloister run`.
func findTrace(root, name string) (*trace.Trace, error) {
	var found []*trace.Trace
	var faults []error
	for _, pattern := range []string{"sandboxes/*/*/" + trace.FileName, "traces/*.jsonl"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, fmt.Errorf("looking for sandboxes: %w", err)
		}
		for _, f := range files {
			t, err := trace.Load(f)
			switch {
			case errors.Is(err, fs.ErrNotExist): // it has just ended
			case err != nil:
				faults = append(faults, err)
			case fits(t, name):
				found = append(found, t)
			}
		}
	}
	t, err := podTrace(name)
	if err != nil && !errors.Is(err, pod.ErrNotFound) {
		faults = append(faults, err)
	}
	if t != nil {
		found = append(found, t)
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b *trace.Trace) int { return a.Began.Compare(b.Began) }), nil
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	if os.Geteuid() != 0 && unreadable(filepath.Join(root, "sandboxes")) {
		return nil, hint(fmt.Errorf("pod %s: %w that this user may read", name, errNoTrace), "pods of the container runtime are root's: run this as root")
	}
	return nil, hint(fmt.Errorf("pod %s: %w", name, errNoTrace),
		"`cloister ps --all` and `crictl pods` list the pods; the container runtime records them with tracing.steps = true")
}

func unreadable(dir string) bool {
	_, err := os.ReadDir(dir)
	return errors.Is(err, fs.ErrPermission)
}

// fits says whether a sandbox is meant by a name, a name with its namespace, or the beginning of its id.
func fits(t *trace.Trace, name string) bool {
	namespace, rest, both := strings.Cut(name, "/")
	const shortest = 4 // of ids, so that a name is rarely mistaken for one
	return t.Name == name || t.ID == name || both && t.Namespace == namespace && t.Name == rest || len(name) >= shortest && strings.HasPrefix(t.ID, name)
}

// podTrace makes a trace out of the events of a pod of `cloister run`, and of its guest's log.
func podTrace(name string) (*trace.Trace, error) {
	dirs, err := paths.Default()
	if err != nil {
		return nil, err
	}
	namespace, rest, both := strings.Cut(name, "/")
	if !both {
		rest = name
	}
	s, err := pod.Lookup(dirs, rest)
	if err != nil || both && s.Namespace != namespace {
		return nil, err
	}
	t := &trace.Trace{Name: s.Name, Namespace: s.Namespace, ID: s.Name, Began: s.Started,
		Attrs: map[string]string{"tee": s.TEE, "accel": s.Accel}, Steps: []trace.Entry{}}
	for _, e := range s.Events {
		if e.Step == pod.StepRunning || e.Step == pod.StepExit {
			continue // a moment, and the life of a container: neither is a step by which the pod came up
		}
		x := trace.Entry{N: len(t.Steps) + 1, Name: e.Step, Start: max(0, e.Time.Add(-e.Took).Sub(s.Started)), Took: e.Took, Error: printable(e.Error)}
		if e.Container != "" {
			x.Attrs = map[string]string{"container": e.Container}
		}
		t.Steps = append(t.Steps, x)
		if e.Step == pod.StepGuestReady && e.Error == "" {
			t.Steps = append(t.Steps, claimed(s, e, len(t.Steps))...)
		}
	}
	return t, nil
}

// claimed are the steps that the guest's log has of its boot. A log that is not there has none.
func claimed(s pod.State, ready pod.Event, before int) []trace.Entry {
	f, err := os.Open(filepath.Join(s.LogDir, pod.GuestLog))
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []trace.Entry
	end := ready.Time.Sub(s.Started)
	for i, c := range trace.ReadGuestLog(f, ready.Time) {
		start := min(max(0, c.Start.Sub(s.Started)), end)
		out = append(out, trace.Entry{N: before + 1 + i, Name: c.Name, Start: start, Took: min(max(0, c.Took), end-start), Claimed: true})
	}
	return out
}
