// Package vmmtest is what every virtual machine monitor has to do the same way: a suite of tests for implementations of vmm.Machine.
//
// Run needs no guest: a monitor that starts nothing but firmware, or a fake of one, passes it. RunGuest needs a guest that behaves as it is
// told on its kernel command line (test/hotplug/probe is one).
package vmmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
)

// limit is far more than any of the tests takes, on a busy machine too.
const limit = 10 * time.Minute

// Monitor is the implementation under test.
type Monitor struct {
	Start func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error)
	// Config describes a VM that starts and stays; its directory is a new one each time.
	Config func(t *testing.T) vmm.Config
	// Kill ends the monitor from outside as a crash would; nil kills the process that PID names.
	Kill func(t *testing.T, m vmm.Machine)
	// Remote says that the VM has no process and no directory here.
	Remote bool
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// ended is a context for Stop that leaves the guest no time.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (mon Monitor) start(t *testing.T, cfg vmm.Config) vmm.Machine {
	t.Helper()
	m, err := mon.Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Stop(ended()) })
	return m
}

// Run runs the tests that need no guest.
func Run(t *testing.T, mon Monitor) {
	t.Run("StartAndStop", mon.startAndStop)
	t.Run("StopOften", mon.stopOften)
	t.Run("Killed", mon.killed)
	t.Run("StartContextEnds", mon.startContextEnds)
	t.Run("StartedHook", mon.startedHook)
	t.Run("Refused", mon.refused)
	t.Run("Plug", mon.plugOrSayWhy)
}

func (mon Monitor) startAndStop(t *testing.T) {
	cfg := mon.Config(t)
	m := mon.start(t, cfg)
	ctx := testContext(t)
	select {
	case <-m.Exited():
		t.Fatalf("it has ended at once: %v", m.Err())
	default:
	}
	if m.Err() != nil || m.FatalReason() != "" {
		t.Errorf("a running VM has the end %v, %q", m.Err(), m.FatalReason())
	}
	pid := m.PID()
	if mon.Remote != (pid == 0) {
		t.Errorf("process number %d", pid)
	}
	if err := m.Stop(ended()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Exited():
	default:
		t.Error("Stop returned before the end")
	}
	if err := m.Err(); err != nil {
		t.Errorf("a requested end is reported as %v", err)
	}
	mon.nothingLeft(t, cfg, pid)
	if conn, err := m.Dial(ctx, 1024); err == nil {
		conn.Close()
		t.Error("an ended VM can be dialled")
	}
	m.ConsoleTail(10) // may be asked for after the end
}

// nothingLeft looks for the process and the directory of a VM that has ended.
func (mon Monitor) nothingLeft(t *testing.T, cfg vmm.Config, pid int) {
	t.Helper()
	if mon.Remote {
		return
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory %s is still there: %v", cfg.Dir, err)
	}
}

func (mon Monitor) stopOften(t *testing.T) {
	m := mon.start(t, mon.Config(t))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := m.Stop(ended()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := m.Stop(ended()); err != nil || m.Err() != nil {
		t.Errorf("stopping what has stopped: %v, %v", err, m.Err())
	}
}

func (mon Monitor) killed(t *testing.T) {
	cfg := mon.Config(t)
	m := mon.start(t, cfg)
	pid := m.PID()
	switch {
	case mon.Kill != nil:
		mon.Kill(t, m)
	case pid != 0:
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	default:
		needs.Optional(t, "this monitor has no process here and no way to be killed")
	}
	waitExited(t, m)
	var e *vmm.ExitError
	if !errors.As(m.Err(), &e) || e.Name != cfg.Name {
		t.Errorf("got %v, expected a *vmm.ExitError of %s", m.Err(), cfg.Name)
	}
	mon.nothingLeft(t, cfg, pid)
	if err := m.Stop(ended()); err != nil || m.Err() == nil {
		t.Errorf("stopping what was killed: %v; the reason is now %v", err, m.Err())
	}
}

func waitExited(t *testing.T, m vmm.Machine) {
	t.Helper()
	select {
	case <-m.Exited():
	case <-testContext(t).Done():
		t.Fatal("the end of the VM was not noticed")
	}
}

// startContextEnds: the context of Start bounds the start only.
func (mon Monitor) startContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	m, err := mon.Start(ctx, mon.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	// A request and its answer are behind whatever the end of the context would have set off.
	if _, _, err := m.Resize(testContext(t), 1, 128); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("asking a running VM for its size: %v", err)
	}
	select {
	case <-m.Exited():
		t.Errorf("the VM ended with the context of its start: %v", m.Err())
	default:
	}
	if err := m.Stop(ended()); err != nil {
		t.Error(err)
	}
	if m, err := mon.Start(ctx, mon.Config(t)); err == nil {
		_ = m.Stop(ended())
		t.Error("a start with an ended context succeeded")
	}
}

func (mon Monitor) startedHook(t *testing.T) {
	if mon.Remote {
		needs.Optional(t, "a remote VM has no processes here")
	}
	cfg := mon.Config(t)
	var pids []int
	cfg.Started = func(pid int) error { pids = append(pids, pid); return nil }
	m := mon.start(t, cfg)
	seen := false
	for _, pid := range pids {
		seen = seen || pid == m.PID()
	}
	if !seen {
		t.Errorf("the hook saw processes %v, not %d", pids, m.PID())
	}
	cfg = mon.Config(t)
	fault := errors.New("no room in the control group")
	var pid int
	cfg.Started = func(p int) error { pid = p; return fault }
	if m, err := mon.Start(testContext(t), cfg); !errors.Is(err, fault) {
		if err == nil {
			_ = m.Stop(ended())
		}
		t.Fatalf("the hook's error became %v", err)
	}
	mon.nothingLeft(t, cfg, pid)
}

func (mon Monitor) refused(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*vmm.Config)
		want string
	}{
		"no name":       {func(c *vmm.Config) { c.Name = "" }, "name"},
		"no processors": {func(c *vmm.Config) { c.VCPUs = 0 }, "CPU"},
		"unknown protection": {func(c *vmm.Config) {
			c.TPM, c.Share, c.MaxVCPUs, c.MaxMemoryMiB, c.TEE = nil, nil, 0, 0, &vmm.TEE{Kind: "wishful"}
		}, "wishful"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := mon.Config(t)
			tt.edit(&cfg)
			m, err := mon.Start(testContext(t), cfg)
			if err == nil {
				_ = m.Stop(ended())
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			if _, err := os.Stat(cfg.Dir); !mon.Remote && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("directory %s is still there: %v", cfg.Dir, err)
			}
		})
	}
}

// plugOrSayWhy: what is asked of Plug is done, or refused as unsupported, and never fails in another way for a good request.
func (mon Monitor) plugOrSayWhy(t *testing.T) {
	cfg := mon.Config(t)
	m := mon.start(t, cfg)
	ctx := testContext(t)
	vcpus, mib, err := m.Resize(ctx, cfg.VCPUs, cfg.MemoryMiB)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("resizing to what it has: %v", err)
	}
	if err == nil && (vcpus < cfg.VCPUs || mib < cfg.MemoryMiB) {
		t.Errorf("it has %d processors and %d MiB", vcpus, mib)
	}
	for what, err := range map[string]error{
		"disk": m.RemoveDisk(ctx, "nobody"), "card": m.RemoveNIC(ctx, "nobody"),
	} {
		if err == nil {
			t.Errorf("a %s that is not there was removed", what)
		}
	}
	_, err = m.AddDisk(ctx, vmm.Disk{Path: "/nonexistent/disk", Serial: "nobody"})
	if err == nil || !errors.Is(err, errors.ErrUnsupported) && !strings.Contains(err.Error(), "/nonexistent/disk") {
		t.Errorf("adding a disk that is not there: %v", err)
	}
}

// Guest is a monitor with a guest that does what the word probe=… on its command line says: serve (answer each line on port 1024 with
// itself, and end when a line is "poweroff"), fatal (give a fatal reason and power off), flood (write to the console without end).
type Guest struct {
	Monitor
	// GuestConfig describes the VM for one of these words.
	GuestConfig func(t *testing.T, word string) vmm.Config
}

// RunGuest runs the tests that need a guest.
func RunGuest(t *testing.T, g Guest) {
	t.Run("Dial", g.dial)
	t.Run("Fatal", g.fatal)
	t.Run("Flood", g.flood)
}

func (g Guest) dial(t *testing.T) {
	m := g.start(t, g.GuestConfig(t, "serve"))
	ctx := testContext(t)
	// Several streams at once, opened before the guest is there.
	var conns []net.Conn
	for range 3 {
		conn, err := m.Dial(ctx, 1024)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		_ = conn.SetDeadline(deadline)
		conns = append(conns, conn)
	}
	for i, conn := range conns {
		line := fmt.Sprintf("echo %d", i)
		if got, err := Ask(conn, line); err != nil || got != line {
			t.Fatalf("stream %d answers %q, %v", i, got, err)
		}
	}
	if len(m.ConsoleTail(100)) == 0 {
		t.Error("the console is empty")
	}
	if _, err := io.WriteString(conns[0], "poweroff\n"); err != nil {
		t.Fatal(err)
	}
	waitExited(t, m)
	var e *vmm.ExitError
	if !errors.As(m.Err(), &e) || e.Reason != "" {
		t.Errorf("a guest that powered off ended with %v", m.Err())
	}
	if _, err := conns[1].Read(make([]byte, 1)); err == nil {
		t.Error("a stream outlives the VM")
	}
}

// Ask sends a line and reads one.
func Ask(conn net.Conn, line string) (string, error) {
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

func (g Guest) fatal(t *testing.T) {
	m := g.start(t, g.GuestConfig(t, "fatal"))
	waitExited(t, m)
	var e *vmm.ExitError
	if !errors.As(m.Err(), &e) || e.Reason != "the probe was told to" || len(e.Console) == 0 {
		t.Errorf("got %v", m.Err())
	}
	if m.FatalReason() != "the probe was told to" {
		t.Errorf("fatal reason %q", m.FatalReason())
	}
}

// maxKept is what may be kept of a console that floods.
const maxKept = 9 << 20

func (g Guest) flood(t *testing.T) {
	cfg := g.GuestConfig(t, "flood")
	m := g.start(t, cfg)
	ctx := testContext(t)
	conn, err := m.Dial(ctx, 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	// The guest answers while it floods, so that the console hinders nothing.
	if got, err := Ask(conn, "still there"); err != nil || got != "still there" {
		t.Errorf("a guest that floods its console answers %q, %v", got, err)
	}
	if err := m.Stop(ended()); err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, l := range m.ConsoleTail(1 << 30) {
		kept += len(l)
	}
	if info, err := os.Stat(cfg.ConsoleLog); err == nil {
		kept += int(info.Size())
	}
	if kept > maxKept {
		t.Errorf("%d bytes of the console were kept", kept)
	}
}
