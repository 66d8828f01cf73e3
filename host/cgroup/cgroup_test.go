package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

func TestParseLocation(t *testing.T) {
	for in, dir := range map[string]string{
		"/kubepods/besteffort/pod1/abc": "/kubepods/besteffort/pod1/abc",
		"/a":                            "/a",
		"/a/":                           "/a",
		"kubepods-besteffort-pod1.slice:cri-containerd:x": "/kubepods.slice/kubepods-besteffort.slice" +
			"/kubepods-besteffort-pod1.slice/cri-containerd-x.scope",
		"system.slice::x": "/system.slice/x.scope",
		":p:x":            "/system.slice/p-x.scope",
		"-.slice:p:x":     "/p-x.scope",
	} {
		l, err := ParseLocation(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got, err := l.Dir(); got != dir || err != nil {
			t.Errorf("%s is %s, %v, want %s", in, got, err, dir)
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l {
			t.Errorf("%s comes back as %+v, %v", in, again, err)
		}
	}
	for _, in := range []string{"", "/", "//", "/.", "/..", "/a/../b", "/a//b", "/a/./b", "a/b", "x", "a:b", "a:b:c", "a.slice:b:",
		"a.slice:b:c:d",
		"a--b.slice:p:x", ".slice:p:x", "a.slice:p:x.slice", "a.slice:../p:x", "a.slice:p:../x", "/a\n", "/a b", "/a/cgroup.procs", "/" +
			strings.Repeat("a", 256), "/" + strings.Repeat("a/", 1500), strings.Repeat("/a", 40),
		"a.slice::" + strings.Repeat("x", 256)} {
		if l, err := ParseLocation(in); err == nil {
			t.Errorf("%.60q was accepted: %+v", in, l)
		}
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add("/kubepods/pod1/abc")
	f.Add("kubepods-pod1.slice:cri-containerd:x")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		dir, err := l.Dir()
		if err != nil || dir == "/" || filepath.Clean(dir) != dir || !filepath.IsAbs(dir) || strings.Contains(dir+"/", "/../") {
			t.Errorf("%q is %q, %v", s, dir, err)
		}
		if filepath.Join("/sys/fs/cgroup", dir) != "/sys/fs/cgroup"+dir {
			t.Errorf("%q leads out: %q", s, dir)
		}
	})
}

// located makes a place for a test, and takes it away afterwards. Groups need root and a file system that can be written.
func located(t *testing.T, systemd bool) Location {
	t.Helper()
	needs.Root(t, "the host's control groups")
	parent := fmt.Sprintf("cloister_test_%d_%d", os.Getpid(), time.Now().UnixNano())
	text := "/" + parent + "/pod/sandbox"
	if systemd {
		text = parent + "-pod.slice:cloister:sandbox"
	}
	l, err := ParseLocation(text)
	if err != nil {
		t.Fatal(err)
	}
	top := Location{Path: "/" + parent}
	if systemd {
		top.Path += ".slice"
	}
	g, err := open(State{Location: top})
	if err != nil {
		needs.Missing(t, "control groups: %v", err)
	}
	if len(g.dirs()) == 0 {
		needs.Missing(t, "a mounted controller of control groups")
	}
	for _, dir := range g.dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			needs.Missing(t, "the right to make control groups: %v", err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := g.Destroy(ctx); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Error("something is left")
		}
	})
	return l
}

// worker is a process that says when it runs; with children it has one that ignores SIGTERM.
func worker(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "trap '' TERM; sleep 300 & echo ready; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd
}

func TestLife(t *testing.T) {
	for _, systemd := range []bool{false, true} {
		t.Run(fmt.Sprintf("systemd form %v", systemd), func(t *testing.T) {
			l := located(t, systemd)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := worker(t)
			first := func(systemd bool) int { // with systemd there has to be one
				if systemd {
					return cmd.Process.Pid
				}
				return 0
			}
			g, err := Create(ctx, l, Limits{CPUQuota: 50_000, CPUPeriod: 100_000, CPUShares: 512, MemoryBytes: 64 << 20, PIDs: 100}, first(systemd))
			if err != nil {
				t.Fatal(err)
			}
			again, err := Create(ctx, l, Limits{MemoryBytes: 96 << 20}, first(systemd)) // the one of a killed process
			if err != nil || !slices.Equal(again.dirs(), g.dirs()) {
				t.Fatalf("taking over: %v", err)
			}
			if err := g.Add(ctx, cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if pids, err := g.PIDs(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
				t.Errorf("processes %v, %v", pids, err)
			}
			if err := g.Set(ctx, Limits{MemoryBytes: 128 << 20, PIDs: 200}); err != nil {
				t.Error(err)
			}
			s, err := g.Stats(ctx)
			if err != nil || s.MemoryLimit != 128<<20 || s.PIDsLimit != 200 || s.PIDs < 1 {
				t.Errorf("%+v, %v", s, err)
			}
			short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
			defer stop()
			err = g.Delete(short)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
				t.Errorf("deleting a group in use: %v", err)
			}
			fromDisk, err := Open(g.State()) // after a crash
			if err != nil {
				t.Fatal(err)
			}
			if err := fromDisk.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the process was not killed")
			}
			if g.Exists() {
				t.Error("directories are left")
			}
			if err := fromDisk.Destroy(ctx); err != nil {
				t.Errorf("destroying what is gone: %v", err)
			}
			if err := g.Add(ctx, os.Getpid()); err == nil {
				t.Error("added to what is gone")
			}
			if g.Exists() {
				t.Error("adding made it again")
			}
		})
	}
}

// TestProcessesBelow: a guest's helper may make groups of its own, and they end with the sandbox.
func TestProcessesBelow(t *testing.T) {
	l := located(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := Create(ctx, l, Limits{}, 0); err != nil {
		t.Fatal(err)
	}
	below, err := Create(ctx, Location{Path: l.Path + "/a/b"}, Limits{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := worker(t)
	if err := below.Add(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	state, err := Plan(l)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Open(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || below.Exists() {
		t.Errorf("left: %v", err)
	}
}

// TestLeave: a shim that is in the group of its sandbox is not killed with it, and does not keep it.
func TestLeave(t *testing.T) {
	const inside = "CLOISTER_TEST_LEAVE"
	if text := os.Getenv(inside); text != "" { // the shim
		l, err := ParseLocation(text)
		if err != nil {
			t.Fatal(err)
		}
		g, err := Create(t.Context(), l, Limits{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Add(t.Context(), os.Getpid()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := g.Destroy(ctx); err != nil || g.Exists() {
			t.Errorf("left behind: %v", err)
		}
		return
	}
	l := located(t, false)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestLeave$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+l.String())
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	l := located(t, false)
	for _, limits := range []Limits{{MemoryBytes: 1}, {MemoryBytes: -1}, {CPUQuota: -1}, {CPUQuota: 5}, {CPUPeriod: 1},
		{CPUShares: 1}, {PIDs: -1},
		{CPUs: "none"}, {CPUs: "99999"}} {
		if g, err := Create(t.Context(), l, limits, 0); err == nil {
			t.Errorf("%+v was accepted", limits)
			_ = g.Destroy(t.Context())
		}
		g, err := open(State{Location: l})
		if err != nil {
			t.Fatal(err)
		}
		if g.Exists() {
			t.Errorf("%+v: directories are left", limits)
		}
	}
	if _, err := Create(t.Context(), l, Limits{}, -1); err == nil {
		t.Error("process -1 was accepted")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ended, l, Limits{}, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// TestDamagedState: what is removed with everything in it is not taken from a file that was tampered with.
func TestDamagedState(t *testing.T) {
	l := located(t, false)
	good, err := Plan(l)
	if err != nil {
		t.Fatal(err)
	}
	other := State{Location: good.Location, Paths: map[string]string{}}
	for c := range good.Paths {
		other.Paths[c] = "/sys/fs/cgroup"
	}
	for name, s := range map[string]State{
		"no paths": {Location: l}, "other paths": other, "root": {Location: Location{Path: "/"}, Paths: good.Paths},
		"no location": {Paths: good.Paths}, "dots": {Location: Location{Path: "/a/.."}, Paths: good.Paths},
	} {
		if _, err := Open(s); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}

func TestFigures(t *testing.T) {
	guest := FromGuest(&agent.CgroupStats{
		CpuStats: &agent.CpuStats{CpuUsage: &agent.CpuUsage{TotalUsage: 700, UsageInUsermode: 500, UsageInKernelmode: 200}},
		MemoryStats: &agent.MemoryStats{Usage: &agent.MemoryData{Usage: 50}, SwapUsage: &agent.MemoryData{Usage: 60},
			Stats: map[string]uint64{"inactive_file": 10, "anon": 30}},
		BlkioStats: &agent.BlkioStats{IoServiceBytesRecursive: []*agent.BlkioStatsEntry{{Op: "Read", Value: math.MaxUint64},
			{Op: "read", Value: 5}}},
	})
	if guest.CPU != 700 || guest.Memory != 50 || guest.Swap != 10 || guest.InactiveFile != 10 ||
		guest.Anon != 30 || guest.ReadBytes != math.MaxUint64 {
		t.Errorf("%+v", guest)
	}
	if (FromGuest(nil) != Stats{}) {
		t.Error("no figures are not zero")
	}
	host := Stats{CPU: 1000, CPUUser: 600, Memory: 300, PIDs: 7}
	rest := Sandbox(host, []Stats{guest, {CPU: 200, Memory: 1000}})
	if rest.CPU != 100 || rest.CPUUser != 100 || rest.Memory != 0 || rest.PIDs != 7 {
		t.Errorf("%+v", rest)
	}
	if liar := (Stats{CPU: math.MaxUint64}).Bounded(host); liar.CPU != 1000 {
		t.Errorf("a guest counted %d ns, the host 1000", liar.CPU)
	}
	if m, ok := guest.Metrics(ModeV2).(*v2.Metrics); !ok || m.GetMemory().GetUsage() != 50 || m.GetCPU().GetUsageUsec() != 0 {
		t.Errorf("%+v", m)
	}
	for _, mode := range []string{ModeV1, ModeHybrid} {
		if m, ok := guest.Metrics(mode).(*v1.Metrics); !ok || m.GetMemory().GetUsage().GetUsage() != 50 ||
			m.GetCPU().GetUsage().GetTotal() != 700 ||
			m.GetMemory().GetTotalInactiveFile() != 10 {
			t.Errorf("%+v", m)
		}
	}
}

func TestMode(t *testing.T) {
	if m := Mode(); m != ModeV1 && m != ModeV2 && m != ModeHybrid {
		t.Errorf("mode %q", m)
	}
	t.Log("this host is " + Mode())
}
