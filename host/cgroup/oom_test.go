package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

// TestOOM has a process that takes more memory than its group may have, in each of the places that containerd gives.
func TestOOM(t *testing.T) {
	for name, systemd := range map[string]bool{"path": false, "systemd form": true} {
		t.Run(name, func(t *testing.T) {
			l := located(t, systemd)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			// It takes memory when it is told to, and so after it has been put into the group.
			cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "read x; exec tail /dev/zero")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			g, err := Create(ctx, l, Limits{MemoryBytes: 16 << 20}, cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := g.memoryDir(); err != nil {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				needs.Missing(t, "%v", err)
			}
			if n, err := g.OOMKills(); n != 0 || err != nil {
				t.Fatalf("%d kills, %v before any", n, err)
			}
			if err := g.OOMReason(); err != nil {
				t.Fatalf("got %v before any", err)
			}
			told := make(chan error, 1)
			go func() {
				n, err := g.OOMKilled(ctx, 0)
				if err == nil && n == 0 {
					err = errors.New("nothing was killed")
				}
				told <- err
			}()
			fmt.Fprintln(in)
			if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the process ended with %v, expected a kill", err)
			}
			if err := <-told; err != nil {
				t.Error(err)
			}
			var oom *OOMError
			dir, err := l.Dir()
			if err != nil {
				t.Fatal(err)
			}
			if err := g.OOMReason(); !errors.As(err, &oom) || oom.Kills != 1 || oom.Limit != 16<<20 || oom.Group != dir {
				t.Errorf("got %v", err)
			} else {
				t.Log(err)
			}
			waiting, give := context.WithCancel(ctx)
			time.AfterFunc(20*time.Millisecond, give)
			if n, err := g.OOMKilled(waiting, 1); !errors.Is(err, context.Canceled) {
				t.Errorf("a second kill: %d, %v", n, err)
			}
			if err := g.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := g.OOMKilled(ctx, 0); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("of a group that is gone: %v", err)
			}
		})
	}
}

// TestOOMAbove has the limit in the pod's group, above that of the sandbox.
func TestOOMAbove(t *testing.T) {
	l := located(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	above := Location{Path: filepath.Dir(l.Path)}
	pod, err := Create(ctx, above, Limits{MemoryBytes: 16 << 20}, 0)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Create(ctx, l, Limits{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.memoryDir(); err != nil {
		needs.Missing(t, "%v", err)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "read x; exec tail /dev/zero")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process was not killed")
	}
	if n, err := g.OOMKilled(ctx, 0); n != 1 || err != nil {
		t.Errorf("%d kills, %v", n, err)
	}
	var oom *OOMError
	if err := g.OOMReason(); !errors.As(err, &oom) || oom.Limit != 16<<20 || oom.Group != above.Path {
		t.Errorf("got %v, expected the limit of %s", err, above)
	}
	if n, err := pod.OOMKills(); n != 1 || err != nil { // what is below counts
		t.Errorf("the pod has %d kills, %v", n, err)
	}
}

// TestOOMVersion2 plays the kernel's files of version 2.
func TestOOMVersion2(t *testing.T) {
	dir := t.TempDir()
	set := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("memory.events", "low 0\noom 4\noom_kill 1\noom_group_kill 9\n")
	set("memory.max", "max\n")
	g := &Group{state: State{Location: Location{Path: "/pod"}, Paths: map[string]string{"": dir}}}
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	var oom *OOMError
	if err := g.OOMReason(); !errors.As(err, &oom) || oom.Limit != 0 || !strings.Contains(err.Error(), "the host ran out of memory") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan uint64, 1)
	go func() {
		n, err := g.OOMKilled(ctx, 1)
		if err != nil {
			t.Error(err)
		}
		got <- n
	}()
	// In place, as the kernel's file changes.
	f, err := os.OpenFile(filepath.Join(dir, "memory.events"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("low 0\noom 5\noom_kill 2\noom_group_kill 9\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if n := <-got; n != 2 {
		t.Errorf("%d kills, expected 2", n)
	}
	for _, text := range []string{"", "oom_kill", "oom_kill x", "oom_kill -1", "oom_kill 99999999999999999999"} {
		set("memory.events", text)
		if n, err := g.OOMKills(); err == nil {
			t.Errorf("%q was read as %d", text, n)
		}
	}
}
