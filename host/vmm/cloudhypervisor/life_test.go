package cloudhypervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/cloudhypervisor/chtest"
	"github.com/cloister/cloister/internal/needs"
)

// ended waits for the end of a VM and returns its reason.
func ended(t *testing.T, v *VM) *vmm.ExitError {
	t.Helper()
	select {
	case <-v.Exited():
	case <-testContext(t).Done():
		t.Fatal("the end of the VM was not noticed")
	}
	var e *vmm.ExitError
	if !errors.As(v.Err(), &e) {
		t.Fatalf("got %v", v.Err())
	}
	return e
}

func TestUnexpectedEnd(t *testing.T) {
	cfg := testConfig(t)
	v := start(t, cfg)
	pid := v.PID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := ended(t, v); e.Status != "signal: killed" || !strings.Contains(e.Error(), "Cloud Hypervisor stopped with signal: killed") {
		t.Errorf("got %v", e)
	}
	gone(t, cfg, pid)
}

func TestGuestEndsItself(t *testing.T) {
	for behaviour, want := range map[string]string{
		chtest.Reboots: "Cloud Hypervisor reported a reset by the guest",
		chtest.Panics:  "kernel panic: test",
	} {
		cfg := testConfig(t, behaviour)
		v, err := Start(testContext(t), cfg)
		if err != nil {
			// The reset can come before the answer to vm.boot.
			if !strings.Contains(err.Error(), "Cloud Hypervisor") {
				t.Errorf("%s: %v", behaviour, err)
			}
			continue
		}
		if e := ended(t, v); !strings.Contains(e.Error(), want) {
			t.Errorf("%s: %v", behaviour, e)
		}
		gone(t, cfg, 0)
	}
}

func TestStopThatNeedsForce(t *testing.T) {
	cfg := testConfig(t, chtest.StaysOn)
	v := start(t, cfg)
	pid := v.PID()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := v.Stop(ctx); err != nil || v.Err() != nil {
		t.Errorf("%v, %v", err, v.Err())
	}
	gone(t, cfg, pid)
}

func TestFloods(t *testing.T) {
	cfg := testConfig(t, chtest.FloodConsole, chtest.FloodEvents)
	v := start(t, cfg)
	conn, err := v.Dial(testContext(t), 1024)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := v.Stop(now); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(cfg.ConsoleLog); err != nil || info.Size() > 9<<20 {
		t.Errorf("console log: %v, %v", info, err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 64<<20 {
		t.Errorf("%d MiB on the heap", m.HeapAlloc>>20)
	}
	gone(t, cfg, 0)
}

func TestDial(t *testing.T) {
	v := start(t, testConfig(t, chtest.VsockLate))
	conn, err := v.Dial(testContext(t), 1024)
	if err != nil {
		t.Fatalf("a guest that listens late: %v", err)
	}
	conn.Close()
	soon, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := v.Dial(soon, 7); err == nil || !strings.Contains(err.Error(), "guest port 7") {
		t.Errorf("a port on which nobody listens: %v", err)
	}
	for behaviour, want := range map[string]string{
		chtest.VsockLies:   `the monitor answered "ERROR 1"`,
		chtest.VsockFloods: `the monitor answered "OK OK`,
		chtest.VsockHangs:  context.DeadlineExceeded.Error(),
	} {
		v := start(t, testConfig(t, behaviour))
		ctx := testContext(t)
		if behaviour == chtest.VsockHangs {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
		}
		if _, err := v.Dial(ctx, 1024); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", behaviour, err)
		}
	}
}

func TestDialOfAnEndingVM(t *testing.T) {
	v := start(t, testConfig(t))
	time.AfterFunc(50*time.Millisecond, v.monitor.Kill)
	var e *vmm.ExitError
	if _, err := v.Dial(testContext(t), 7); !errors.As(err, &e) {
		t.Errorf("got %v", err)
	}
}

func TestPlug(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	v := start(t, cfg)
	disk := vmm.Disk{Path: cfg.Kernel, Serial: "vol-1"}
	at, err := v.AddDisk(ctx, disk)
	if err != nil || at.Driver != "blk" || at.Address != "03" {
		t.Errorf("disk: %+v, %v", at, err)
	}
	if _, err := v.AddDisk(ctx, disk); err == nil || !strings.Contains(err.Error(), "409") {
		t.Errorf("the same disk again: %v", err)
	}
	if _, err := v.AddDisk(ctx, vmm.Disk{Path: cfg.Kernel, Serial: "a/b"}); err == nil {
		t.Error("a bad serial was taken")
	}
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	at, err = v.AddNIC(ctx, vmm.NIC{ID: "eth1", MAC: "02:00:00:00:00:02", Taps: []*os.File{tap}})
	if err != nil || at.Address != "04" {
		t.Errorf("card: %+v, %v", at, err)
	}
	if got := requests(t, cfg, "vm.add-net"); len(got) != 1 || len(got[0].Files) != 1 || got[0].Files[0] != os.DevNull {
		t.Errorf("sent %+v", got)
	}
	if err := errors.Join(v.RemoveDisk(ctx, "vol-1"), v.RemoveNIC(ctx, "eth1")); err != nil {
		t.Error(err)
	}
	if err := v.RemoveDisk(ctx, "vol-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that has gone: %v", err)
	}
	lies := start(t, testConfig(t, chtest.WrongPlace))
	if at, err := lies.AddDisk(ctx, disk); err == nil || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("a place that is none: %+v, %v", at, err)
	}
}

func TestResize(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	cfg.MaxVCPUs, cfg.MaxMemoryMiB = 4, 1024
	v := start(t, cfg)
	tests := []struct {
		vcpus, memory         int
		haveVCPUs, haveMemory int
		ok                    bool
	}{
		{1, 128, 1, 256, true},
		{2, 300, 2, 384, true},
		{1, 256, 2, 384, true},
		{8, 300, 2, 384, false},
		{2, 2048, 2, 384, false},
		{4, 1024, 4, 1024, true},
	}
	for _, tt := range tests {
		c, m, err := v.Resize(ctx, tt.vcpus, tt.memory)
		if c != tt.haveVCPUs || m != tt.haveMemory || (err == nil) != tt.ok {
			t.Errorf("%d, %d: got %d, %d, %v", tt.vcpus, tt.memory, c, m, err)
		}
	}
	fixed := start(t, testConfig(t))
	if _, _, err := fixed.Resize(ctx, 2, 256); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a VM of fixed size: %v", err)
	}
	lies := start(t, testConfig(t, chtest.WrongSize))
	if c, m, err := lies.Resize(ctx, 1, 256); err == nil {
		t.Errorf("an absurd size was believed: %d, %d", c, m)
	}
}

func TestCleanStale(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// A process that lost its supervisor looks like this: the name, and the directory in the environment.
	sleep := needs.Program(t, "sleep")
	program := filepath.Join(base, "cloud-hypervisor")
	text, err := os.ReadFile(sleep)
	if err == nil {
		err = os.WriteFile(program, text, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	ours, err := process.Start(program, []string{"100"}, process.Environment(dir))
	if err != nil {
		t.Fatal(err)
	}
	other, err := process.Start(program, []string{"100"}, process.Environment(dir+"2"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Kill()
	if err := CleanStale(testContext(t), dir); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ours.Done():
	case <-testContext(t).Done():
		t.Error("the left-over process still runs")
	}
	select {
	case <-other.Done():
		t.Error("a process of another VM was killed")
	default:
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
	if err := CleanStale(testContext(t), "/"); err == nil {
		t.Error("/ was accepted")
	}
}
