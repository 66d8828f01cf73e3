package reap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// The tests of this package share one reaper, as a program does: a second loop would steal the first one's children.
var shared *Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "becoming a subreaper:", err)
		os.Exit(1)
	}
	ctx, stop := context.WithCancel(context.Background())
	shared = New(slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		_ = shared.Serve(ctx)
		close(done)
	}()
	code := m.Run()
	stop()
	<-done
	os.Exit(code)
}

func shell(script string) Cmd {
	return Cmd{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRun(t *testing.T) {
	ctx := testContext(t)
	t.Run("output and input", func(t *testing.T) {
		cmd := shell("cat; echo oops >&2")
		cmd.Stdin = []byte("hello")
		res, err := shared.Run(ctx, cmd)
		if err != nil || string(res.Stdout) != "hello" || string(res.Stderr) != "oops\n" {
			t.Fatalf("got %q, %q, %v", res.Stdout, res.Stderr, err)
		}
	})
	t.Run("exit code", func(t *testing.T) {
		_, err := shared.Run(ctx, shell("echo first >&2; echo reason >&2; exit 7"))
		var ee *ExitError
		if !errors.As(err, &ee) || ee.Status.ExitCode() != 7 || ee.Stderr != "reason" {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		_, err := shared.Run(ctx, shell("kill -9 $$"))
		var ee *ExitError
		if !errors.As(err, &ee) || ee.Status.ExitCode() != 137 {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("missing program", func(t *testing.T) {
		if _, err := shared.Run(ctx, Cmd{Path: "/nonexistent/program"}); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("environment is not inherited", func(t *testing.T) {
		t.Setenv("CLOISTER_TEST_LEAK", "secret")
		res, err := shared.Run(ctx, Cmd{Path: "/usr/bin/env"})
		if err != nil || bytes.Contains(res.Stdout, []byte("secret")) {
			t.Fatalf("got %q, %v", res.Stdout, err)
		}
	})
	t.Run("bounded output", func(t *testing.T) {
		cmd := shell("head -c 1000000 /dev/zero")
		cmd.Capture = 1000
		res, err := shared.Run(ctx, cmd)
		if err != nil || len(res.Stdout) != 1000 {
			t.Fatalf("kept %d bytes, %v", len(res.Stdout), err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := shared.Run(ctx, shell("exec sleep 60")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("inherited output does not hold the caller", func(t *testing.T) {
		res, err := shared.Run(ctx, shell("sleep 20 & echo $!"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(res.Stdout)))
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(pid, unix.SIGKILL)
	})
}

func TestManyAtOnce(t *testing.T) {
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			res, err := shared.Run(ctx, shell("exit "+strconv.Itoa(i)))
			if i > 0 && err == nil || res.Status.Code != i {
				t.Errorf("process %d: %v, %v", i, res.Status, err)
			}
		})
	}
	wg.Wait()
}

func TestWatchAdopted(t *testing.T) {
	ctx := testContext(t)
	t.Run("already ended", func(t *testing.T) {
		c := shared.Collect()
		defer c.Close()
		// The pipe closes when the orphan has ended, so by then its status is on its way to the collector.
		rd, wr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer rd.Close()
		file := t.TempDir() + "/pid"
		cmd := shell("(exit 5) & echo $! >" + file)
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		cmd.Files = []*os.File{null, wr, wr}
		if _, err := shared.Run(ctx, cmd); err != nil {
			t.Fatal(err)
		}
		wr.Close()
		_, _ = rd.Read(make([]byte, 1))
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
		p, err := c.Watch(pid)
		if err != nil {
			needs.Optional(t, "the shell reaped its child itself")
		}
		s, err := p.Wait(ctx)
		if err != nil || s.ExitCode() != 5 {
			t.Fatalf("got %v, %v", s, err)
		}
	})
	t.Run("running", func(t *testing.T) {
		c := shared.Collect()
		res, err := shared.Run(ctx, shell("sleep 60 >/dev/null 2>&1 & echo $!"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(res.Stdout)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Watch(pid)
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		s, err := p.Wait(ctx)
		if err != nil || s.ExitCode() != 143 {
			t.Fatalf("got %v, %v", s, err)
		}
		if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Fatalf("signal after exit: %v", err)
		}
	})
	t.Run("not a child", func(t *testing.T) {
		c := shared.Collect()
		defer c.Close()
		for _, pid := range []int{-1, 0, 1} {
			if _, err := c.Watch(pid); err == nil {
				t.Errorf("watching %d was accepted", pid)
			}
		}
	})
}

// TestWatchReusedPid watches pids whose earlier holders have left a status.
func TestWatchReusedPid(t *testing.T) {
	ctx := testContext(t)
	earlier := Status{Code: 9}
	left := func(pid int) {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		shared.unclaimed[pid] = earlier
	}
	c := shared.Collect()
	defer c.Close()
	res, err := shared.Run(ctx, shell("sleep 60 >/dev/null 2>&1 & echo $!"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(res.Stdout)))
	if err != nil {
		t.Fatal(err)
	}
	left(pid)
	p, err := c.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
		t.Errorf("a live process is reported as ended with %s", p.Status())
	default:
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s, err := p.Wait(ctx); err != nil || s.ExitCode() != 143 {
		t.Errorf("got %v, %v, expected its own status", s, err)
	}
	// The number has gone to a process that is no child of ours.
	stranger := os.Getpid()
	left(stranger)
	p, err = c.Watch(stranger)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := p.Wait(ctx); err != nil || s != earlier {
		t.Errorf("got %v, %v, expected the status of the child", s, err)
	}
	if _, err := c.Watch(stranger); !errors.Is(err, unix.ECHILD) {
		t.Errorf("watching a stranger: got %v, expected that it is no child", err)
	}
}

func TestStartAfterStop(t *testing.T) {
	r := New(slog.New(slog.DiscardHandler))
	r.stop()
	if _, err := r.Run(t.Context(), shell("true")); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
}
