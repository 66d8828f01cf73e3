package container

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/reap"
	"github.com/cloister/cloister/internal/needs"
)

func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{root + "/vol", dir + "/secret"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"in": "vol", "abs": dir + "/secret", "up": "../secret", "proc": "/proc/self/root"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if fd, err := OpenPlain(root+"/in", []string{root}); err == nil {
		unix.Close(fd)
		t.Error("a link was followed")
	}
	if fd, err := OpenPlain(root+"/vol", []string{root}); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
	for _, p := range []string{"/vol", "/in"} {
		fd, err := OpenBeneath(root+p, []string{root})
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		unix.Close(fd)
	}
	for _, p := range []string{root + "/abs", root + "/up", root + "/proc", root + "/up/x", dir + "/secret", root, "/etc"} {
		if fd, err := OpenBeneath(p, []string{root}); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %d, %v", p, fd, err)
		}
	}
	if _, err := OpenBeneath(root+"/missing", []string{root}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestStageBinds(t *testing.T) {
	needs.Root(t, "mounts")
	root, stage := t.TempDir(), t.TempDir()
	if err := os.WriteFile(root+"/file", []byte("pinned"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Spec{Mounts: []MountSpec{{Destination: "/f", Type: "bind", Source: root + "/file"}, {Destination: "/t", Type: "tmpfs", Source: "tmpfs"}}}
	undo, err := stageBinds(s, []string{root}, stage+"/m")
	if errors.Is(err, unix.EPERM) {
		needs.Missing(t, "the right to mount: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// What the host puts in the source's place afterwards has no effect.
	if err := errors.Join(os.Remove(root+"/file"), os.Symlink("/etc/shadow", root+"/file")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.Mounts[0].Source); err != nil || string(got) != "pinned" {
		t.Errorf("got %q, %v", got, err)
	}
	if s.Mounts[1].Source != "tmpfs" {
		t.Errorf("got %+v", s.Mounts[1])
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	bad := &Spec{Mounts: []MountSpec{{Destination: "/f", Type: "bind", Source: root + "/file"}}}
	if _, err := stageBinds(bad, []string{root}, stage+"/n"); !errors.Is(err, ErrSpec) {
		t.Errorf("escape: %v", err)
	}
}

func pipeReader(t *testing.T) (*reader, *os.File, context.CancelFunc) {
	t.Helper()
	rd, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rd.Close(); wr.Close() })
	drained, done := context.WithCancel(t.Context())
	return newReader(rd, drained), wr, done
}

func TestReader(t *testing.T) {
	t.Run("returns what is there", func(t *testing.T) {
		r, w, _ := pipeReader(t)
		if _, err := w.WriteString("some"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := r.read(t.Context(), buf); err != nil || string(buf[:n]) != "some" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		w.Close()
		if _, err := r.read(t.Context(), buf); !errors.Is(err, io.EOF) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a caller that goes away loses nothing", func(t *testing.T) {
		r, w, _ := pipeReader(t)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		buf := make([]byte, 10)
		if _, err := r.read(ctx, buf); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if _, err := w.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if n, err := r.read(t.Context(), buf); err != nil || n != 1 {
			t.Fatalf("got %d, %v", n, err)
		}
	})
	t.Run("drains after the process ended and then ends", func(t *testing.T) {
		r, w, done := pipeReader(t) // w stays open, as a daemon's inherited output does
		if _, err := w.WriteString(strings.Repeat("y", 20)); err != nil {
			t.Fatal(err)
		}
		done()
		buf := make([]byte, 15)
		for _, want := range []int{15, 5} {
			if n, err := r.read(t.Context(), buf); err != nil || n != want {
				t.Fatalf("got %d, %v", n, err)
			}
		}
		if _, err := r.read(t.Context(), buf); !errors.Is(err, io.EOF) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a blocked reader is woken by the end", func(t *testing.T) {
		r, _, done := pipeReader(t)
		got := make(chan error, 1)
		go func() {
			_, err := r.read(t.Context(), make([]byte, 1))
			got <- err
		}()
		done()
		if err := <-got; !errors.Is(err, io.EOF) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestStates(t *testing.T) {
	type step struct{ from, to State }
	allowed := map[step]bool{
		{Creating, Created}: true, {Creating, Stopped}: true, {Creating, Deleted}: true, {Created, Running}: true, {Created, Stopped}: true,
		{Running, Paused}: true, {Running, Stopped}: true, {Paused, Running}: true, {Paused, Stopped}: true, {Stopped, Deleted}: true,
	}
	for from := Creating; from <= Deleted; from++ {
		for to := Creating; to <= Deleted; to++ {
			c := &Container{ID: "c1", state: from}
			err := c.setState(to)
			if want := allowed[step{from, to}]; (err == nil) != want {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			if err != nil && (!errors.Is(err, ErrState) || c.state != from) {
				t.Errorf("%s to %s: %v, now %s", from, to, err, c.state)
			}
		}
	}
}

func TestReadStats(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\n", "memory.current": "4096\n", "memory.max": "max\n",
		"memory.stat": "anon 1\nfile 2\n", "memory.events": "low 0\nmax 7\noom_kill 1\n", "pids.current": "3\n",
		"io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2\nbroken line\n", "hugetlb.2MB.current": "0\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	st, err := readStats(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := st.GetMemoryStats()
	if st.GetCpuStats().GetCpuUsage().GetTotalUsage() != 5000 || m.GetUsage().GetUsage() != 4096 || m.GetUsage().GetLimit() != math.MaxUint64 || m.GetSwapUsage().GetLimit() != 0 || m.GetUsage().GetFailcnt() != 7 ||
		m.GetCache() != 2 || m.GetStats()["oom_kill"] != 1 || st.GetPidsStats().GetCurrent() != 3 || len(st.GetBlkioStats().GetIoServiceBytesRecursive()) != 2 || st.GetHugetlbStats()["2MB"] == nil {
		t.Errorf("got %v", st)
	}
	if _, err := readStats(dir + "/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestHandlesSignal(t *testing.T) {
	// The runtime of this very program catches SIGTERM and cannot catch SIGKILL.
	if !handlesSignal(os.Getpid(), unix.SIGTERM) || handlesSignal(os.Getpid(), unix.SIGKILL) || handlesSignal(1<<30, unix.SIGTERM) {
		t.Error("signal masks are misread")
	}
}

func TestRemoveTreeSparesMounts(t *testing.T) {
	needs.Root(t, "mounts")
	dir, volume := t.TempDir(), t.TempDir()
	file := filepath.Join(volume, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "x")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one on the other
		if err := unix.Mount(volume, at, "", unix.MS_BIND, ""); err != nil {
			needs.Missing(t, "the right to mount: %v", err)
		}
	}
	t.Cleanup(func() { _ = UnmountAll(at) })
	if err := RemoveTree(dir); err == nil {
		t.Error("a tree with a mount in it was removed")
	}
	if err := UnmountAll(at); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the volume's file is gone: %v", err)
	}
}

func TestDiscardAgain(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "runc")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ -e "+dir+"/failed ] && exit 0\ntouch "+dir+"/failed\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	reaper := reap.New(slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() { defer close(served); _ = reaper.Serve(ctx) }()
	t.Cleanup(func() { stop(); <-served })
	undone := 0
	c := &Container{
		ID: "a", dir: filepath.Join(dir, "a"), procs: map[string]*Process{}, unstage: func() error { undone++; return nil },
		rt: &Runtime{reaper: reaper, runc: &runc{reaper: reaper, path: program, root: dir}},
	}
	if err := c.discard(t.Context()); err == nil {
		t.Fatal("a delete that the runtime refused is no error")
	}
	if err := c.discard(t.Context()); err != nil {
		t.Fatal("the second try:", err)
	}
	if undone != 1 {
		t.Errorf("binds were taken back %d times", undone)
	}
	if _, err := os.Stat(c.dir); err == nil {
		t.Error("the container's directory is left")
	}
}
